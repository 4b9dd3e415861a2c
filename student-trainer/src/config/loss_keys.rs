//! Provides the flags of the loss settings: one line of help for each.

use distill_program::settings::{Key, Kind, Need};

use super::needs::{BLOCKS, COST_KL, DIVERGENCE, HIDDEN, JSD, OT, SIMILARITY, TRANSPORT};

/// One line a key.
macro_rules! table {
    ($($path:literal: $kind:ident $(needs [$($need:ident),+])? = $help:literal;)+) => {
        &[$(($path, Kind::$kind, $help, &[$($($need),+)?])),+]
    };
}

/// Key under `[loss]`, kind, help and needs of every loss setting.
const LOSS_KEYS: &[(&str, Kind, &str, &[Need])] = table! {
    "ce_weight": Float = "Weight of cross-entropy with the corpus' own tokens";
    "kl_weight": Float = "Weight of tau^2 KL(teacher || student)";
    "reverse_kl_weight": Float = "Weight of tau^2 KL(student || teacher)";
    "jsd_weight": Float = "Weight of tau^2 JSD, the divergence of both from their mixture";
    "jsd_beta": Float needs [JSD] = "The teacher's share of that mixture";
    "kl_temperature": Float needs [DIVERGENCE] = "tau of all three; one of the temperatures that the teacher stores";
    "ot_weight": Float = "Weight of optimal transport";
    "hidden_weight": Float = "Weight of transport between hidden states, through a learned projection";
    "hidden_layer": Integer needs [HIDDEN] = "Student layer of those hidden states: 1 is the first, 0 the last after its norm";
    "hidden_similarity": Text needs [HIDDEN] = "Similarity of hidden states: scaled-dot or cosine";
    "hidden_temperature": Float needs [HIDDEN] = "Divides that similarity before its softmax";
    "hidden_lr": Float needs [HIDDEN] = "Peak learning rate of the projection of hidden states";
    "schedule.ot_warmup_steps": Integer needs [TRANSPORT] = "Steps over which the weights of both transports rise from 0";
    "schedule.ce_weight_end": Float = "Weight of cross-entropy at the last step; linear in between";
    "schedule.kl_weight_end": Float = "Weight of KL at the last step; linear in between";
    "schedule.reverse_kl_weight_end": Float = "Weight of reverse KL at the last step; linear in between";
    "schedule.jsd_weight_end": Float = "Weight of JSD at the last step; linear in between";
    "schedule.ot_weight_end": Float = "Weight of transport at the last step; linear in between";
    "schedule.hidden_weight_end": Float = "Weight of transport between hidden states at the last step; linear in between";
    "schedule.temperature_end": Float needs [OT, SIMILARITY] = "Temperature of the similarity at the last step; geometric in between";
    "schedule.epsilon_end": Float needs [TRANSPORT] = "epsilon at the last step; geometric in between";
    "chunk_rows": Integer = "Rows whose logits exist at one time";
    "ot.cost": Text needs [OT] = "Cost of transport: softmax-similarity or kl";
    "ot.plan_cost": Text needs [OT] = "What the plan is solved for: same (the cost) or squared-euclidean (of raw logits over their mean)";
    "ot.similarity": Text needs [OT, SIMILARITY] = "Under softmax-similarity: scaled-dot, centered-dot, cosine or bhattacharyya";
    "ot.temperature": Float needs [OT, SIMILARITY] = "Divides the similarity before its softmax";
    "ot.kappa": Float needs [OT, COST_KL] = "Nats of KL that count as cost 1 under kl";
    "ot.epsilon": Float needs [TRANSPORT] = "Entropic regularisation, in units of the cost";
    "ot.lambda": Float needs [TRANSPORT] = "1 / epsilon, the other usual name; give one of the two";
    "ot.scope": Text needs [TRANSPORT] = "Positions of one problem: row (all) or block";
    "ot.block_size": Integer needs [TRANSPORT, BLOCKS] = "Positions of a block under scope block";
    "ot.reduction": Text needs [TRANSPORT, BLOCKS] = "Over block pairs: mean or sum";
    "ot.objective": Text needs [TRANSPORT] = "What is minimised: entropic, sharp, or detached (in the preset literal only)";
    "ot.position_prior": Float needs [TRANSPORT] = "gamma of gamma (i/N - j/M)^2, added to the cost when solving; 0 is off";
    "ot.max_iterations": Integer needs [TRANSPORT] = "Most passes of the solver over the kernel";
    "ot.tolerance": Float needs [TRANSPORT] = "L1 marginal error at which the solver stops";
};

/// The keys of the loss section.
pub fn loss_keys() -> Vec<Key> {
    let key = |&(path, kind, help, needs): &(&str, Kind, &str, &[Need])| Key {
        needs: needs.to_vec(),
        ..Key::new(path, help, kind)
    };
    LOSS_KEYS.iter().map(key).collect()
}

/// As [`loss_keys`], for a command that shows every part of the loss, whatever its weight.
pub fn every_loss_key() -> Vec<Key> {
    let is_weight = |need: &Need| [DIVERGENCE, JSD, OT, HIDDEN, TRANSPORT].contains(need);
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
                reverse_kl_weight_end: Some(1.0),
                jsd_weight_end: Some(1.0),
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
