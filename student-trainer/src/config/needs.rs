/*! Provides what a setting needs beside itself to have an effect, and the warning about one that has none.

A need stands with its setting, where that is declared. What was set without it is no error: a command line is often the one
before with a weight put to 0.
*/

use toml::{Table, Value};

use super::settings::Key;

/// What the value of a setting must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// A number above 0.
    Above0,
    /// True.
    On,
    /// There, and no empty list.
    Set,
    /// Not there.
    Unset,
    /// The first of these words, or another name of it.
    One(&'static [&'static str]),
    /// Another word than this.
    Not(&'static str),
    /// A text that begins like this.
    Begins(&'static str),
    /// No address of a server.
    NoAddress,
}

/// One of these must hold: the dotted path of a setting, and what it must be.
pub type Need = &'static [(&'static str, Is)];

/// Beginnings of what a trainer connects to.
const ADDRESSES: [&str; 3] = ["http://", "https://", "unix:"];

const KL_WEIGHT: (&str, Is) = ("loss.kl_weight", Is::Above0);
const KL_WEIGHT_END: (&str, Is) = ("loss.schedule.kl_weight_end", Is::Above0);
const OT_WEIGHT: (&str, Is) = ("loss.ot_weight", Is::Above0);
const OT_WEIGHT_END: (&str, Is) = ("loss.schedule.ot_weight_end", Is::Above0);
const HIDDEN_WEIGHT: (&str, Is) = ("loss.hidden_weight", Is::Above0);
const HIDDEN_WEIGHT_END: (&str, Is) = ("loss.schedule.hidden_weight_end", Is::Above0);

/// A divergence from the teacher.
pub const KL: Need = &[KL_WEIGHT, KL_WEIGHT_END];
/// Transport between logits.
pub const OT: Need = &[OT_WEIGHT, OT_WEIGHT_END];
/// Transport between hidden states.
pub const HIDDEN: Need = &[HIDDEN_WEIGHT, HIDDEN_WEIGHT_END];
/// Either transport: both are solved with the same settings.
pub const TRANSPORT: Need = &[OT_WEIGHT, OT_WEIGHT_END, HIDDEN_WEIGHT, HIDDEN_WEIGHT_END];
/// A cost made of similarities.
pub const SIMILARITY: Need = &[("loss.ot.cost", Is::One(&["softmax-similarity"]))];
/// A cost made of divergences.
pub const COST_KL: Need = &[("loss.ot.cost", Is::One(&["kl"]))];
/// Several problems of transport.
pub const BLOCKS: Need = &[("loss.ot.scope", Is::One(&["block"]))];
/// The mixture of teacher and student.
pub const JSD: Need = &[("loss.kl_divergence", Is::One(&["jsd"]))];

/// Adapters.
pub const LORA: Need = &[("tune", Is::One(&["lora"]))];
/// Every weight.
pub const FULL: Need = &[("tune", Is::One(&["full"]))];
/// Adapters that begin with this run.
pub const NEW_ADAPTER: Need = &[("init_adapter", Is::Unset)];
/// A length in passes.
pub const NO_STEPS: Need = &[("steps", Is::Unset)];
/// A warm-up in shares.
pub const NO_WARMUP_STEPS: Need = &[("warmup_steps", Is::Unset)];
/// Evaluations while training.
pub const EVAL_DATA: Need = &[("eval_data", Is::Set)];
/// Answers at those evaluations.
pub const EVAL_ANSWERS: Need = &[("eval_exact_match", Is::On)];
/// Answers that are drawn.
pub const EVAL_DRAWN: Need = &[("eval_temperature", Is::Above0)];

/// A teacher that `eval` asks.
pub const TEACHER: Need = &[("teacher", Is::Set)];
/// One with a certificate.
pub const HTTPS: Need = &[("teacher", Is::Begins("https://"))];
/// One that `plan` counts.
pub const TEACHER_MODEL: Need = &[("teacher", Is::NoAddress)];
/// The machine's memory.
pub const ON_CPU: Need = &[("device", Is::One(&["cpu"]))];
/// A GPU's memory.
pub const ON_GPU: Need = &[("device", Is::Not("cpu"))];
/// Answers of `eval`.
pub const ANSWERS: Need = &[("exact_match", Is::On), ("answers_out", Is::Set)];
/// Answers of `eval` that are drawn.
pub const DRAWN: Need = &[("temperature", Is::Above0)];
/// Plans that `eval` writes.
pub const PLANS_OUT: Need = &[("plans_out", Is::Set)];
/// Weights in four bits.
pub const FOUR_BITS: Need = &[("weights", Is::One(&["4bit", "nf4"]))];

impl Is {
    fn holds(self, value: Option<&Value>) -> bool {
        let text = value.and_then(Value::as_str);
        match self {
            Self::Above0 => value.and_then(number).is_some_and(|number| number > 0.0),
            Self::On => value.and_then(Value::as_bool) == Some(true),
            Self::Set => value.is_some_and(|value| value.as_array().is_none_or(|a| !a.is_empty())),
            Self::Unset => value.is_none(),
            Self::One(words) => text.is_some_and(|text| words.contains(&text)),
            Self::Not(word) => text != Some(word),
            Self::Begins(beginning) => text.is_some_and(|text| text.starts_with(beginning)),
            Self::NoAddress => {
                text.is_some_and(|text| !ADDRESSES.iter().any(|begin| text.starts_with(begin)))
            }
        }
    }

    /// What to give, in words.
    fn wish(self, flag: &str) -> String {
        match self {
            Self::Above0 => format!("--{flag} above 0"),
            Self::On => format!("--{flag} on"),
            Self::Set => format!("--{flag}"),
            Self::Unset => format!("no --{flag}"),
            Self::One(words) => format!("--{flag} {}", words.first().unwrap_or(&"")),
            Self::Not(word) => format!("another --{flag} than {word}"),
            Self::Begins(beginning) => format!("--{flag} {beginning}..."),
            Self::NoAddress => format!("--{flag} with a model"),
        }
    }
}

/// Why `key` has no effect with these settings; `None` where it has one.
pub(super) fn idle(key: &Key, settings: &Table) -> Option<String> {
    let is_met = |need: &Need| {
        need.iter()
            .any(|(path, is)| is.holds(lookup(settings, path)))
    };
    let wish = |need: &Need| {
        let wishes = need.iter().map(|(path, is)| is.wish(&flag_of(path)));
        wishes.collect::<Vec<_>>().join(" or ")
    };
    let lacking = key.needs.iter().filter(|need| !is_met(need));
    let lacking: Vec<String> = lacking.map(wish).collect();
    (!lacking.is_empty()).then(|| {
        format!(
            "{} has no effect: it needs {}",
            key.path,
            lacking.join(", and ")
        )
    })
}

/// The value at a dotted path.
pub(super) fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
    }
}

/// Whether two values are the same one: 1 is 1.0.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    a == b || matches!((number(a), number(b)), (Some(a), Some(b)) if a == b)
}

/// A number, written as an integer or not.
pub(super) fn number(value: &Value) -> Option<f64> {
    value
        .as_float()
        .or_else(|| value.as_integer().map(|number| number as f64))
}

/// The flag of a dotted path, without its dashes.
pub(super) fn flag_of(path: &str) -> String {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    leaf.replace('_', "-")
}
