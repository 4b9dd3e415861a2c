//! Provides what became of settings that earlier releases had.

/// Key under `[loss]`, and what says the same now, settings in backticks.
const RENAMED: &[(&str, &str)] = &[(
    "kl_divergence",
    "`loss.kl_weight` for forward, `loss.reverse_kl_weight` for reverse and `loss.jsd_weight` for jsd",
)];

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
