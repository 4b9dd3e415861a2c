//! Provides the flags of the loss settings: one line of help for each.

use distill_program::settings::{Key, Kind, Need};

use super::needs::{
    BLOCKS, COST_KL, COSTED, DIVERGENCE, HELD, HIDDEN, JSD, MASSES, OT, PARTIAL, SIMILARITY,
    SOLVED, STATES, UNBALANCED,
};
use crate::loss::{
    AlignLoss, Centering, Cost, Marginals, PlanKind, Projection, Reduction, Similarity,
};

/// One line a key.
macro_rules! table {
    ($($path:literal: $kind:ident $(of $of:ty)? $(, alias $alias:literal)? $(, needs [$($need:ident),+])? = $help:literal;)+) => {
        &[$(LossKey {
            path: $path,
            kind: Kind::$kind,
            of: &[$(Key::of::<$of>)?],
            help: $help,
            needs: &[$($($need),+)?],
            alias: &[$($alias)?],
        }),+]
    };
}

/// A setting of the loss.
struct LossKey {
    /// Under `[loss]`.
    path: &'static str,
    kind: Kind,
    /// The type of a choice between some words.
    of: &'static [fn(Key) -> Key],
    help: &'static str,
    needs: &'static [Need],
    /// A shorter flag, if there is one.
    alias: &'static [&'static str],
}

const LOSS_KEYS: &[LossKey] = table! {
    "ce_weight": Float = "Weight of cross-entropy with the corpus' own tokens";
    "kl_weight": Float = "Weight of tau^2 KL(teacher || student)";
    "reverse_kl_weight": Float = "Weight of tau^2 KL(student || teacher)";
    "jsd_weight": Float = "Weight of tau^2 JSD, the divergence of both from their mixture";
    "jsd_beta": Float, needs [JSD] = "The teacher's share of that mixture";
    "kl_temperature": Float, needs [DIVERGENCE] = "tau of all three; one of the temperatures that the teacher stores";
    "ot_weight": Float = "Weight of what is learned between positions, by optimal transport or another plan";
    "schedule.ot_warmup_steps": Integer, needs [OT] = "Steps over which the weight of transport rises from 0";
    "schedule.ce_weight_end": Float = "Weight of cross-entropy at the last step; linear in between";
    "schedule.kl_weight_end": Float = "Weight of KL at the last step; linear in between";
    "schedule.reverse_kl_weight_end": Float = "Weight of reverse KL at the last step; linear in between";
    "schedule.jsd_weight_end": Float = "Weight of JSD at the last step; linear in between";
    "schedule.ot_weight_end": Float = "Weight of transport at the last step; linear in between";
    "schedule.temperature_end": Float, needs [OT, SIMILARITY] = "Temperature of the similarity at the last step; geometric in between";
    "schedule.epsilon_end": Float, needs [OT, COSTED] = "epsilon at the last step; geometric in between";
    "chunk_rows": Integer = "Rows whose logits exist at one time";
    "align.plan": Text of PlanKind, needs [OT] = "How the plan between positions is made";
    "align.cost": Text of Cost, alias "cost", needs [OT, COSTED] = "What it is made for";
    "align.loss": Text of AlignLoss, needs [OT] = "What is paid on it; detached is for the preset literal only";
    "align.through_plan": Boolean, needs [OT, HELD] = "Let the gradient of kl, similarity and states go through the plan too";
    "align.similarity": Text of Similarity, alias "similarity", needs [OT, SIMILARITY] = "How alike two positions are, under softmax-similarity";
    "align.temperature": Float, alias "temperature", needs [OT, SIMILARITY] = "Divides the similarity before its softmax";
    "align.kappa": Float, alias "kappa", needs [OT, COST_KL] = "Nats of KL that count as cost 1 under kl";
    "align.epsilon": Float, alias "epsilon", needs [OT, COSTED] = "Entropic regularisation, in units of the cost";
    "align.lambda": Float, alias "lambda", needs [OT, COSTED] = "1 / epsilon, the other usual name; give one of the two";
    "align.rho_student": Float, needs [OT, UNBALANCED] = "What a unit of the student's mass that is not as it should be costs";
    "align.rho_teacher": Float, needs [OT, UNBALANCED] = "The same for the teacher's mass";
    "align.mass": Float, needs [OT, PARTIAL] = "What is transported, of 1";
    "align.marginals": Text of Marginals, needs [OT, MASSES] = "Mass of the teacher's positions";
    "align.block_size": Integer, alias "block-size", needs [OT] = "Length of the blocks whose pairs are problems of their own; 0: one problem of all positions";
    "align.reduction": Text of Reduction, alias "reduction", needs [OT, BLOCKS] = "Over block pairs";
    "align.position": Float, alias "position-prior", needs [OT, COSTED] = "gamma of gamma (i/N - j/M)^2, added to the cost when the plan is made; 0 is off; unset: 1000, and 0 for the two texts of a pair";
    "align.bytes": Float, needs [OT, COSTED] = "Taken from the cost then, where both sides have the same number or name";
    "align.links": Float, needs [OT, COSTED] = "Taken from the cost then, where the record joins both sides";
    "align.layers": List, needs [OT, HIDDEN] = "Hidden states that are compared, TEACHER_STATE:STUDENT_LAYER[:WEIGHT] each, their weighted mean in one plan: state 0 is the capture's, layer 0 the embeddings, last the last after its norm";
    "align.projection": Text of Projection, needs [OT, HIDDEN] = "Where the projection of hidden states comes from: fitted (on what both sides share, then held) or random (and trained)";
    "align.centering": Text of Centering, needs [OT, STATES] = "Which means states are compared beside under cost hidden: fitted (those of the rows that the projection was fitted on) or sequence; unset: as the projection";
    "align.projection_lr": Float, needs [OT, HIDDEN] = "Peak learning rate of that projection; unset: 0 for a fitted one, 0.001 for a random one";
    "align.max_iterations": Integer, alias "max-iterations", needs [OT, SOLVED] = "Most passes of the solver over the kernel";
    "align.tolerance": Float, alias "tolerance", needs [OT, SOLVED] = "L1 marginal error at which the solver stops";
};

/// The keys of the loss section.
pub fn loss_keys() -> Vec<Key> {
    let key = |key: &LossKey| {
        let declared = Key {
            needs: key.needs.to_vec(),
            alias: key.alias.first().copied(),
            group: Some("Loss"),
            ..Key::new(key.path, key.help, key.kind)
        };
        key.of.iter().fold(declared, |key, of| of(key))
    };
    LOSS_KEYS.iter().map(key).collect()
}

/// As [`loss_keys`], for a command that shows every part of the loss, whatever its weight.
pub fn every_loss_key() -> Vec<Key> {
    let is_weight = |need: &Need| [DIVERGENCE, JSD, OT].contains(need);
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
    use crate::loss::{AlignConfig, LossConfig, LossSchedule};

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
            align: AlignConfig {
                lambda: Some(10.0),
                position: Some(10.0),
                centering: Some(Centering::Sequence),
                projection_lr: Some(1e-3),
                ..AlignConfig::default()
            },
            schedule: LossSchedule {
                ot_warmup_steps: 1,
                ce_weight_end: Some(1.0),
                kl_weight_end: Some(1.0),
                reverse_kl_weight_end: Some(1.0),
                jsd_weight_end: Some(1.0),
                ot_weight_end: Some(1.0),
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
