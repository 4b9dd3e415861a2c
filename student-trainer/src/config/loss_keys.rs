//! Provides the flags of the loss settings: one line of help for each.

use super::{
    needs::{BLOCKS, COST_KL, HIDDEN, JSD, KL, Need, OT, SIMILARITY, TRANSPORT},
    settings::{Key, Kind},
};

/// Key under `[loss]`, kind, help and needs of every loss setting.
const LOSS_KEYS: [(&str, Kind, &str, &[Need]); 33] = [
    (
        "ce_weight",
        Kind::Float,
        "Weight of cross-entropy with the corpus' own tokens",
        &[],
    ),
    (
        "kl_weight",
        Kind::Float,
        "Weight of tau^2 KL(teacher || student)",
        &[],
    ),
    (
        "kl_temperature",
        Kind::Float,
        "tau of KL; one of the temperatures that the teacher stores",
        &[KL],
    ),
    (
        "kl_divergence",
        Kind::Text,
        "Divergence from the teacher: forward, reverse or jsd",
        &[KL],
    ),
    (
        "jsd_beta",
        Kind::Float,
        "The teacher's share of the mixture under jsd",
        &[KL, JSD],
    ),
    ("ot_weight", Kind::Float, "Weight of optimal transport", &[]),
    (
        "hidden_weight",
        Kind::Float,
        "Weight of transport between hidden states, through a learned projection",
        &[],
    ),
    (
        "hidden_layer",
        Kind::Integer,
        "Student layer of those hidden states: 1 is the first, 0 the last after its norm",
        &[HIDDEN],
    ),
    (
        "hidden_similarity",
        Kind::Text,
        "Similarity of hidden states: scaled-dot or cosine",
        &[HIDDEN],
    ),
    (
        "hidden_temperature",
        Kind::Float,
        "Divides that similarity before its softmax",
        &[HIDDEN],
    ),
    (
        "hidden_lr",
        Kind::Float,
        "Peak learning rate of the projection of hidden states",
        &[HIDDEN],
    ),
    (
        "schedule.ot_warmup_steps",
        Kind::Integer,
        "Steps over which the weights of both transports rise from 0",
        &[TRANSPORT],
    ),
    (
        "schedule.ce_weight_end",
        Kind::Float,
        "Weight of cross-entropy at the last step; linear in between",
        &[],
    ),
    (
        "schedule.kl_weight_end",
        Kind::Float,
        "Weight of KL at the last step; linear in between",
        &[],
    ),
    (
        "schedule.ot_weight_end",
        Kind::Float,
        "Weight of transport at the last step; linear in between",
        &[],
    ),
    (
        "schedule.hidden_weight_end",
        Kind::Float,
        "Weight of transport between hidden states at the last step; linear in between",
        &[],
    ),
    (
        "schedule.temperature_end",
        Kind::Float,
        "Temperature of the similarity at the last step; geometric in between",
        &[OT, SIMILARITY],
    ),
    (
        "schedule.epsilon_end",
        Kind::Float,
        "epsilon at the last step; geometric in between",
        &[TRANSPORT],
    ),
    (
        "chunk_rows",
        Kind::Integer,
        "Rows whose logits exist at one time",
        &[],
    ),
    (
        "ot.cost",
        Kind::Text,
        "Cost of transport: softmax-similarity or kl",
        &[OT],
    ),
    (
        "ot.plan_cost",
        Kind::Text,
        "What the plan is solved for: same (the cost) or squared-euclidean (of raw logits over their mean)",
        &[OT],
    ),
    (
        "ot.similarity",
        Kind::Text,
        "Under softmax-similarity: scaled-dot, centered-dot, cosine or bhattacharyya",
        &[OT, SIMILARITY],
    ),
    (
        "ot.temperature",
        Kind::Float,
        "Divides the similarity before its softmax",
        &[OT, SIMILARITY],
    ),
    (
        "ot.kappa",
        Kind::Float,
        "Nats of KL that count as cost 1 under kl",
        &[OT, COST_KL],
    ),
    (
        "ot.epsilon",
        Kind::Float,
        "Entropic regularisation, in units of the cost",
        &[TRANSPORT],
    ),
    (
        "ot.lambda",
        Kind::Float,
        "1 / epsilon, the other usual name; give one of the two",
        &[TRANSPORT],
    ),
    (
        "ot.scope",
        Kind::Text,
        "Positions of one problem: row (all) or block",
        &[TRANSPORT],
    ),
    (
        "ot.block_size",
        Kind::Integer,
        "Positions of a block under scope block",
        &[TRANSPORT, BLOCKS],
    ),
    (
        "ot.reduction",
        Kind::Text,
        "Over block pairs: mean or sum",
        &[TRANSPORT, BLOCKS],
    ),
    (
        "ot.objective",
        Kind::Text,
        "What is minimised: entropic, sharp, or detached (in the preset literal only)",
        &[TRANSPORT],
    ),
    (
        "ot.position_prior",
        Kind::Float,
        "gamma of gamma (i/N - j/M)^2, added to the cost when solving; 0 is off",
        &[TRANSPORT],
    ),
    (
        "ot.max_iterations",
        Kind::Integer,
        "Most passes of the solver over the kernel",
        &[TRANSPORT],
    ),
    (
        "ot.tolerance",
        Kind::Float,
        "L1 marginal error at which the solver stops",
        &[TRANSPORT],
    ),
];

/// The keys of the loss section.
pub fn loss_keys() -> Vec<Key> {
    LOSS_KEYS
        .iter()
        .map(|(path, kind, help, needs)| Key::new(*path, help, *kind).needing(needs))
        .collect()
}

/// As [`loss_keys`], for a command that shows every part of the loss, whatever its weight.
pub fn every_loss_key() -> Vec<Key> {
    let is_weight = |need: &Need| [KL, OT, HIDDEN, TRANSPORT].contains(need);
    let mut keys = loss_keys();
    for key in &mut keys {
        key.needs.retain(|need| !is_weight(need));
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::loss::{LossConfig, LossSchedule, OtConfig};

    fn paths(table: &toml::Table, prefix: &str, out: &mut BTreeSet<String>) {
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => paths(inner, &format!("{prefix}{name}."), out),
                _ => {
                    out.insert(format!("{prefix}{name}"));
                }
            }
        }
    }

    #[test]
    fn every_loss_setting_has_a_flag_and_every_flag_a_setting() {
        // Every optional setting is set, so that it shows.
        let full = LossConfig {
            ot: OtConfig {
                lambda: Some(10.0),
                ..OtConfig::default()
            },
            schedule: LossSchedule {
                ot_warmup_steps: 1,
                ce_weight_end: Some(1.0),
                kl_weight_end: Some(1.0),
                ot_weight_end: Some(1.0),
                hidden_weight_end: Some(1.0),
                temperature_end: Some(1.0),
                epsilon_end: Some(1.0),
            },
            ..LossConfig::default()
        };
        let mut settings = BTreeSet::new();
        paths(&toml::Table::try_from(full).unwrap(), "", &mut settings);
        let keys: BTreeSet<String> = loss_keys().into_iter().map(|key| key.path).collect();
        assert_eq!(keys, settings);
    }
}
