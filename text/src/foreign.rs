//! Provides what settings of other trainers and servers are called here, for messages about names that are not known.

/// A setting of transformers, TRL, PEFT or vLLM that people type out of habit.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Its name there, with underscores.
    pub name: &'static str,
    /// What to use in `student-trainer`, its settings in backticks; empty where it is the teacher's.
    pub trainer: &'static str,
    /// What to use in `teacher-server`; empty where it is the trainer's.
    pub server: &'static str,
}

/// The setting of another program with this name, typed as a flag or as a key: `--learning-rate`, `learning_rate`.
pub fn foreign(name: &str) -> Option<&'static Foreign> {
    let name = name.trim_start_matches('-').replace('-', "_");
    FOREIGN
        .iter()
        .find(|foreign| foreign.name.eq_ignore_ascii_case(&name))
}

const fn trainer(name: &'static str, trainer: &'static str) -> Foreign {
    both(name, trainer, "")
}

const fn server(name: &'static str, server: &'static str) -> Foreign {
    both(name, "", server)
}

const fn both(name: &'static str, trainer: &'static str, server: &'static str) -> Foreign {
    Foreign {
        name,
        trainer,
        server,
    }
}

const COSINE: &str =
    "`warmup_ratio` and `lr_floor_ratio`: the learning rate rises in a line and falls in a cosine";
const LENGTH: &str = "`seq_len` in eval and pretrain; what is trained on is as long as the teacher says, with `seq_len` of teacher-server";
const NO_DROPOUT: &str = "nothing: there is no dropout";
const ALWAYS_BOTH: &str = "nothing: every step is in metrics.jsonl and for TensorBoard";
const DATA: &str = "nothing in train: the teacher reads the text, with `corpus` of teacher-server; `data` in eval and pretrain";

/// All of them; of names that differ only in what they are about, the usual one.
pub const FOREIGN: &[Foreign] = &[
    // transformers' TrainingArguments.
    trainer("learning_rate", "`lr`"),
    both(
        "per_device_train_batch_size",
        "`batch_size`",
        "`batch_size`",
    ),
    both("train_batch_size", "`batch_size`", "`batch_size`"),
    both("per_device_eval_batch_size", "`batch_size`", "`batch_size`"),
    trainer("gradient_accumulation_steps", "`grad_accumulation`"),
    trainer("max_steps", "`steps`"),
    trainer("num_train_epochs", "`epochs`"),
    trainer("num_epochs", "`epochs`"),
    both("output_dir", "`out`", "`cache`"),
    trainer("lr_scheduler_type", COSINE),
    trainer("lr_scheduler", COSINE),
    trainer("optim", "`optimizer`"),
    trainer("adam_beta1", "`beta1`"),
    trainer("adam_beta2", "`beta2`"),
    trainer("adam_epsilon", "`eps`"),
    trainer("max_norm", "`max_grad_norm`"),
    trainer("gradient_checkpointing", "`checkpointing`"),
    trainer("save_total_limit", "`keep_last`"),
    trainer("save_strategy", "`save_steps`"),
    trainer("evaluation_strategy", "`eval_steps`"),
    trainer("eval_strategy", "`eval_steps`"),
    trainer("metric_for_best_model", "`best_metric`"),
    trainer(
        "load_best_model_at_end",
        "nothing: `best` in the run directory is the best checkpoint by `best_metric`",
    ),
    trainer(
        "resume_from_checkpoint",
        "the flag --resume RUN_DIR of train",
    ),
    trainer("logging_steps", ALWAYS_BOTH),
    trainer("logging_dir", ALWAYS_BOTH),
    trainer("report_to", ALWAYS_BOTH),
    trainer("data_seed", "`seed`"),
    both("bf16", "`dtype` with bf16", "`dtype` with bf16"),
    both("fp16", "`dtype` with f16", "`dtype` with f16"),
    both("torch_dtype", "`dtype`", "`dtype`"),
    both("use_cpu", "`device` with cpu", "`device` with cpu"),
    both("no_cuda", "`device` with cpu", "`device` with cpu"),
    // PEFT, bitsandbytes and TRL's ModelConfig.
    trainer("lora_r", "`lora_rank`"),
    trainer("lora_target_modules", "`lora_targets`"),
    trainer("target_modules", "`lora_targets`"),
    trainer("lora_dropout", NO_DROPOUT),
    trainer("use_rslora", "`lora_rs`"),
    trainer("rank_pattern", "`lora_rank_pattern`"),
    trainer("alpha_pattern", "`lora_alpha_pattern`"),
    trainer("loraplus_lr_ratio", "`lora_b_lr_ratio`"),
    trainer(
        "loraplus_lr_embedding",
        "`embedding_lr_ratio`, a multiple of `lr`",
    ),
    trainer("use_peft", "`tune` with lora"),
    trainer("load_in_4bit", "`quantize` with nf4"),
    trainer(
        "load_in_8bit",
        "`quantize` with nf4: there are four bits and full precision",
    ),
    trainer(
        "bnb_4bit_quant_type",
        "`quantize`; of the command quantize `quant_type`",
    ),
    trainer(
        "use_bnb_nested_quant",
        "`double_quant` of the command quantize",
    ),
    both("model_name_or_path", "`student`", "`model`"),
    both("model_name", "`student`", "`model`"),
    both(
        "student_model_name_or_path",
        "`student`",
        "nothing: the student is named in student-trainer",
    ),
    both(
        "teacher_model_name_or_path",
        "`teacher`, the address of a teacher-server with that `model`",
        "`model`",
    ),
    both(
        "teacher_model",
        "`teacher`, the address of a teacher-server with that `model`",
        "`model`",
    ),
    both(
        "tokenizer_name",
        "`tokenizer` in pretrain, quantize and export; in train it is the student's own",
        "`tokenizer`",
    ),
    both(
        "tokenizer_name_or_path",
        "`tokenizer` in pretrain, quantize and export; in train it is the student's own",
        "`tokenizer`",
    ),
    // TRL's SFT, GKD and MiniLLM trainers.
    both("max_seq_length", LENGTH, "`seq_len`"),
    both("max_length", LENGTH, "`seq_len`"),
    both("model_max_length", LENGTH, "`seq_len`"),
    both("dataset_name", DATA, "`corpus`, files"),
    both("train_file", DATA, "`corpus`"),
    both("dataset_path", DATA, "`corpus`"),
    trainer("validation_file", "`eval_data`"),
    trainer("eval_dataset", "`eval_data`"),
    both(
        "temperature",
        "`loss.kl_temperature`, or of transport `loss.align.temperature`",
        "`temperatures`",
    ),
    both("kd_temperature", "`loss.kl_temperature`", "`temperatures`"),
    trainer("beta", "`loss.jsd_beta`, with `loss.jsd_weight`"),
    trainer(
        "alpha",
        "`loss.kl_weight` and `loss.ce_weight`; of adapters `lora_alpha`",
    ),
    trainer(
        "lmbda",
        "nothing: what is trained on is the corpus, not the student's own text",
    ),
    trainer("kd_ratio", "`loss.kl_weight` and `loss.ce_weight`"),
    trainer(
        "neftune_noise_alpha",
        "nothing: the embeddings get no noise",
    ),
    trainer("attention_dropout", NO_DROPOUT),
    trainer(
        "label_smoothing_factor",
        "nothing: `loss.kl_weight` weighs the teacher's own distribution",
    ),
    // vLLM and text-generation-inference.
    server("host", "`bind` with HOST:PORT"),
    server("port", "`bind` with HOST:PORT"),
    server("max_model_len", "`seq_len`"),
    server("served_model_name", "nothing: the name is that of `model`"),
    server(
        "api_key",
        "`token_file`, or the environment's OT_DISTILL_TOKEN",
    ),
    server("ssl_certfile", "`tls_cert`"),
    server("ssl_keyfile", "`tls_key`"),
    both(
        "gpu_memory_utilization",
        "`memory_budget_bytes`",
        "`memory_budget_bytes`",
    ),
    server("max_logprobs", "`top_k`"),
    server("logprobs", "`top_k`"),
    server("num_logprobs", "`top_k`"),
    server("max_num_seqs", "`batch_size`"),
    server("model_id", "`model`"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once_and_says_something() {
        for (i, one) in FOREIGN.iter().enumerate() {
            assert!(
                FOREIGN[..i].iter().all(|other| other.name != one.name),
                "{}",
                one.name
            );
            assert!(
                !(one.trainer.is_empty() && one.server.is_empty()),
                "{}",
                one.name
            );
        }
    }

    #[test]
    fn a_name_is_found_as_a_flag_and_as_a_key() {
        for name in [
            "learning_rate",
            "--learning-rate",
            "--learning_rate",
            "LEARNING_RATE",
        ] {
            assert_eq!(
                foreign(name).map(|found| found.trainer),
                Some("`lr`"),
                "{name}"
            );
        }
        assert!(foreign("lr").is_none() && foreign("").is_none());
    }
}
