//! Provides what became of settings that earlier releases had.

/// Key under `[loss]`, and what says the same now, settings in backticks.
const RENAMED: &[(&str, &str)] = &[
    (
        "kl_divergence",
        "`loss.kl_weight` for forward, `loss.reverse_kl_weight` for reverse and `loss.jsd_weight` for jsd",
    ),
    ("ot.cost", "`loss.align.cost`"),
    (
        "ot.plan_cost",
        "`loss.align.cost`, what the plan is made for; what is paid then says `loss.align.loss`: kl or similarity",
    ),
    ("ot.similarity", "`loss.align.similarity`"),
    ("ot.temperature", "`loss.align.temperature`"),
    ("ot.kappa", "`loss.align.kappa`"),
    ("ot.epsilon", "`loss.align.epsilon`"),
    ("ot.lambda", "`loss.align.lambda`"),
    (
        "ot.scope",
        "`loss.align.block_size`: 0 for row, the length of a block for block",
    ),
    (
        "ot.block_size",
        "`loss.align.block_size`, where 0 is no blocks",
    ),
    ("ot.reduction", "`loss.align.reduction`"),
    ("ot.objective", "`loss.align.loss`"),
    ("ot.position_prior", "`loss.align.position`"),
    ("ot.tolerance", "`loss.align.tolerance`"),
    ("ot.max_iterations", "`loss.align.max_iterations`"),
    (
        "hidden_weight",
        "`loss.ot_weight`, with `loss.align.cost` softmax-similarity and `loss.align.similarity` hidden-cosine",
    ),
    (
        "schedule.hidden_weight_end",
        "`loss.schedule.ot_weight_end`",
    ),
    (
        "hidden_layer",
        "`loss.align.layers`: 0:N for layer N, 0:last for 0",
    ),
    (
        "hidden_similarity",
        "`loss.align.similarity`: hidden-cosine or hidden-scaled-dot",
    ),
    ("hidden_temperature", "`loss.align.temperature`"),
    ("hidden_lr", "`loss.align.projection_lr`"),
];

/// What became of a setting, by its flag or its path; `None` for a name that no release had.
pub(super) fn renamed(name: &str) -> Option<String> {
    let name = name.trim_start_matches('-').replace('-', "_");
    let path = name.strip_prefix("loss.").unwrap_or(&name);
    let leaf = |old: &str| old.rsplit('.').next() == Some(path);
    let found = RENAMED.iter().find(|(old, _)| *old == path || leaf(old));
    found.map(|(_, now)| format!("it is now {now}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    #[test]
    fn what_old_settings_became_exists_and_they_do_not() {
        let keys = cli::all_keys();
        for (old, now) in RENAMED {
            assert!(
                keys.iter().all(|key| key.path != format!("loss.{old}")),
                "{old}"
            );
            for setting in now.split('`').skip(1).step_by(2) {
                assert!(
                    keys.iter().any(|key| key.path == setting),
                    "{old}: {setting}"
                );
            }
        }
    }
}
