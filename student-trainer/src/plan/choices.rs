//! Provides what each setting buys: memory for time or quality, and the other way round.

use serde::Serialize;

use super::{
    config::PlanConfig,
    modes::{Processes, Sharing},
    pair::Pair,
};
use crate::{
    Result,
    config::{ComputeDtype, Quantize, Tune},
    optimizer::OptimizerKind,
};

/// Length of the blocks that transport is offered in.
const BLOCK_SIZE: usize = 64;

/// One setting that could be another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// What to say on the command line.
    pub setting: String,
    /// What it changes of the peak: below 0 it frees memory.
    pub bytes: i64,
    /// What it costs, or what the memory buys.
    pub effect: &'static str,
}

/// Every other setting that changes the peak, what frees most first.
///
/// # Errors
/// As [`Processes::new`].
pub fn choices(pair: &Pair, config: &PlanConfig) -> Result<Vec<Choice>> {
    let peak = |pair: &Pair, config: &PlanConfig| -> Result<u64> {
        let both = Processes::new(pair, config)?;
        let sharing = both.sharings().first().copied();
        Ok(both.peak(sharing.unwrap_or(Sharing::Cached)).unwrap_or(0))
    };
    let now = peak(pair, config)?;
    let mut choices = Vec::new();
    let mut add = |setting: String, effect, other: u64| {
        let bytes = other as i64 - now as i64;
        if bytes != 0 {
            choices.push(Choice {
                setting,
                bytes,
                effect,
            });
        }
    };
    for (setting, effect, other) in alternatives(pair, config) {
        add(setting, effect, peak(pair, &other)?);
    }
    if let Some(packed) = pair.with_q4_k_m() {
        let effect = "the teacher's weights in 4 to 6 bits";
        add(
            "--teacher FILE-Q4_K_M.gguf".into(),
            effect,
            peak(&packed, config)?,
        );
    }
    choices.sort_by_key(|choice| choice.bytes);
    Ok(choices)
}

type Alternative = (String, &'static str, PlanConfig);

/// Settings one step away from `config`.
fn alternatives(pair: &Pair, config: &PlanConfig) -> Vec<Alternative> {
    let mut all = Vec::new();
    let mut offer = |setting: String, effect, change: &dyn Fn(&mut PlanConfig)| {
        let mut other = config.clone();
        change(&mut other);
        // Two settings may exclude each other.
        if other != *config && other.validate().is_ok() {
            all.push((setting, effect, other));
        }
    };
    let train = &config.train;
    offer(
        "--checkpointing on".into(),
        "layers are computed twice",
        &|c| {
            c.train.checkpointing = true;
        },
    );
    offer(
        "--checkpointing off".into(),
        "no layer is computed twice",
        &|c| {
            c.train.checkpointing = false;
            c.train.checkpoint_every = 1;
        },
    );
    for every in [1, 2, 4] {
        let effect = "fewer inputs are kept, more is computed at a time";
        offer(format!("--checkpoint-every {every}"), effect, &|c| {
            c.train.checkpoint_every = every;
        });
    }
    offer("--quantize nf4".into(), "a base in 4 bits", &|c| {
        c.train.quantize = Quantize::Nf4;
    });
    if pair.student.stored.four_bit.is_none() {
        offer(
            "--quantize none".into(),
            "a base without rounding to 4 bits",
            &|c| {
                c.train.quantize = Quantize::None;
            },
        );
    }
    offer("--dtype bf16".into(), "activations are rounded", &|c| {
        c.train.dtype = ComputeDtype::Bf16;
    });
    offer(
        "--optimizer adamw8bit".into(),
        "moments are rounded",
        &|c| {
            c.train.optimizer = OptimizerKind::AdamW8bit;
        },
    );
    offer(
        "--tune lora".into(),
        "adapters instead of every weight",
        &|c| {
            c.train.tune = Tune::Lora;
        },
    );
    adapters(config, &mut offer);
    passes(config, &mut offer);
    let rows = train.loss.chunk_rows;
    offer(
        format!("--chunk-rows {}", rows.div_ceil(2)),
        "more and smaller products with the head",
        &|c| {
            c.train.loss.chunk_rows = rows.div_ceil(2);
        },
    );
    offer("--ot-weight 0".into(), "no transport", &|c| {
        c.train.loss.ot_weight = 0.0
    });
    offer(
        format!("--align-block-size {BLOCK_SIZE}"),
        "transport within blocks: another loss",
        &|c| {
            let align = &mut c.train.loss.align;
            if c.train.loss.ot_weight > 0.0 && align.block_size == 0 {
                align.block_size = BLOCK_SIZE;
            }
        },
    );
    let rank = config.state_rank(pair.teacher.as_ref().map(|teacher| &teacher.model));
    if rank > 128 && train.loss.needs_state() {
        offer(
            "--state-rank 128 (teacher: --state sketch:128)".into(),
            "similarities of logits to a tenth",
            &|c| {
                c.options.state_rank = Some(128);
            },
        );
    }
    offer(
        "--teacher-dtype bf16".into(),
        "the teacher's weights are rounded",
        &|c| {
            c.options.teacher_dtype = ComputeDtype::Bf16;
        },
    );
    if config.options.teacher_batch_size > 1 {
        offer(
            "--teacher-batch-size 1".into(),
            "smaller products in the teacher",
            &|c| {
                c.options.teacher_batch_size = 1;
            },
        );
    }
    all
}

type Offer<'a> = dyn FnMut(String, &'static str, &dyn Fn(&mut PlanConfig)) + 'a;

fn adapters(config: &PlanConfig, offer: &mut Offer<'_>) {
    let rank = config.train.lora_rank;
    for (rank, effect) in [
        (rank / 2, "smaller adapters"),
        (2 * rank, "larger adapters"),
    ] {
        offer(format!("--lora-rank {rank}"), effect, &|c| {
            c.train.lora_rank = rank
        });
    }
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned);
    let names = attention.join(",");
    offer(
        format!("--lora-targets {names}"),
        "the MLP is not adapted",
        &|c| {
            c.train.lora_targets = attention.to_vec();
        },
    );
}

fn passes(config: &PlanConfig, offer: &mut Offer<'_>) {
    let train = &config.train;
    let (batch_size, passes) = (train.batch_size, train.grad_accumulation);
    if batch_size > 1 {
        let half = batch_size.div_ceil(2);
        let setting = format!("--batch-size {half} --grad-accumulation {}", 2 * passes);
        offer(setting, "more passes for one step", &|c| {
            c.train.batch_size = half;
            c.train.grad_accumulation = 2 * passes;
        });
    }
    if passes > 1 {
        let half = passes.div_ceil(2);
        let setting = format!("--batch-size {} --grad-accumulation {half}", 2 * batch_size);
        offer(setting, "fewer and larger passes for one step", &|c| {
            c.train.batch_size = 2 * batch_size;
            c.train.grad_accumulation = half;
        });
    }
    let seq_len = config.options.seq_len;
    for (seq_len, effect) in [
        (seq_len / 2, "shorter windows, at the teacher"),
        (2 * seq_len, "longer windows, at the teacher"),
    ] {
        offer(format!("--seq-len {seq_len}"), effect, &|c| {
            c.options.seq_len = seq_len
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &PlanConfig) -> Vec<Choice> {
        choices(&Pair::reference().unwrap(), config).unwrap()
    }

    fn bytes(choices: &[Choice], setting: &str) -> Option<i64> {
        let found = choices.iter().find(|choice| choice.setting == setting);
        found.map(|choice| choice.bytes)
    }

    #[test]
    fn each_choice_is_the_difference_of_two_plans() {
        let mut config = PlanConfig::default();
        let choices = of(&config);
        let eight_bit = bytes(&choices, "--optimizer adamw8bit").unwrap();
        // 18,464,768 parameters' moments in 2 bytes instead of 8, with a scale for every 256, and the slack that goes with them.
        let less = 6 * 18_464_768 - 18_464_768 / 32;
        assert!((eight_bit + (f64::from(less) * 1.05) as i64).abs() <= 1);
        let off = bytes(&choices, "--checkpointing off").unwrap();
        // What 28 layers keep of 512 tokens beside their inputs.
        assert!(off > 600 << 20);
        assert!(choices.is_sorted_by_key(|choice| choice.bytes));

        config.train.checkpointing = false;
        let on = bytes(&of(&config), "--checkpointing on").unwrap();
        assert_eq!(on, -off);
    }

    #[test]
    fn what_is_set_already_or_changes_nothing_is_no_choice() {
        let mut config = PlanConfig::default();
        config.train.optimizer = OptimizerKind::AdamW8bit;
        let choices = of(&config);
        for setting in [
            "--optimizer adamw8bit",
            "--quantize nf4",
            "--ot-weight 0",
            "--align-block-size 64",
        ] {
            assert_eq!(bytes(&choices, setting), None, "{setting}");
        }
    }

    #[test]
    fn a_teacher_in_blocks_frees_two_thirds_of_its_weights() {
        let pair = Pair::reference().unwrap();
        let setting = "--teacher FILE-Q4_K_M.gguf";
        let freed = bytes(&of(&PlanConfig::default()), setting).unwrap();
        // 15.23 GB in bf16; 4.68 GB less 0.31 GB of embedding, and a strip of 0.13 or 0.2 GB, with the slack of 5 %.
        assert!(
            (-11_400_000_000..-11_000_000_000).contains(&freed),
            "{freed}"
        );
        let again = choices(&pair.with_q4_k_m().unwrap(), &PlanConfig::default()).unwrap();
        assert_eq!(bytes(&again, setting), None);
    }

    #[test]
    fn batches_are_offered_both_ways() {
        let mut config = PlanConfig::default();
        config.train.batch_size = 4;
        config.train.grad_accumulation = 2;
        let choices = of(&config);
        assert!(bytes(&choices, "--batch-size 2 --grad-accumulation 4").unwrap() < 0);
        assert!(bytes(&choices, "--batch-size 8 --grad-accumulation 1").unwrap() > 0);
    }
}
