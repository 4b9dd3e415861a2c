//! Provides what `plan` can be told: everything that `train` can, and what is the teacher's or the card's.

use distill_model::ModelConfig;
use distill_program::settings;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    config::{
        ComputeDtype, Key, Keys, TrainConfig, Tune,
        needs::{ON_CPU, ON_GPU, TEACHER_MODEL},
    },
    loss::LossConfig,
};

/// Tokens of a sequence at most.
const SEQ_LEN_MAX: usize = 1 << 20;
/// Sequences of a pass, passes of a step, and entries of a row at most.
pub const BATCH_SIZE_MAX: usize = 4096;
/// Frames held ready, and rows of a chunk at most.
const ROWS_MAX: usize = 1 << 16;

settings! {
    /// What `plan` is told beside the settings of `train`.
    pub struct PlanOptions: once {
        group "Plan":
        /// Tokens of a sequence, as the teacher's seq_len.
        seq_len: usize = 512, limits: 1..=SEQ_LEN_MAX, essential: true;
        /// Sequences in one forward pass of the teacher.
        teacher_batch_size: usize = 1, limits: 1..=BATCH_SIZE_MAX, needs: [TEACHER_MODEL];
        /// Rows of the teacher's logits at one time, as its chunk_rows.
        teacher_chunk_rows: usize = 128, limits: 1..=ROWS_MAX, needs: [TEACHER_MODEL];
        /// Type that a teacher's weights are held in; auto is bf16 on a card and f32 on the CPU.
        teacher_dtype: ComputeDtype as Text = ComputeDtype::Auto, needs: [TEACHER_MODEL];
        /// Entries that the teacher keeps of a row: K, draws, or both together.
        entries: usize = 24, limits: 1..=BATCH_SIZE_MAX;
        /// Coordinates of a state that come with every row: R of sketch:R, the teacher's hidden size for exact and hidden:L;
        /// unset: that size where the loss needs a state, else none.
        state_rank: Option<usize> = None, limits: 1..=ROWS_MAX;
        /// Memory of the card in MiB; an RTX 4090 has 24564.
        vram_mib: u64 = 24_564, needs: [ON_GPU], essential: true;
        /// Memory of the machine in MiB, for --device cpu; unset: this machine's.
        ram_mib: Option<u64> = None, needs: [ON_CPU];
        /// MiB that are left to the display, the driver and other programs.
        reserve_mib: u64 = 512, needs: [ON_GPU];
        /// Print a JSON object.
        json: bool = false;
    }
}

/// Everything `plan` can be told: a command line of `train`, or its file, is one of `plan` too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanConfig {
    /// What `train` knows nothing of.
    #[serde(flatten)]
    pub options: PlanOptions,
    /// The settings of the run; `teacher` may also be a model's directory, its `config.json`, a GGUF file or its name on the hub.
    #[serde(flatten)]
    pub train: TrainConfig,
}

impl Keys for PlanConfig {
    fn keys() -> Vec<Key> {
        let train = TrainConfig::keys().into_iter().map(|key| match key.path.as_str() {
            "teacher" => Key {
                default: String::new(),
                value_name: Some("DIR|GGUF|NAME"),
                help: "The teacher: a directory, a .gguf file, or a name on the hub".to_owned(),
                details: "Its config.json does, too; a name is org/name or org/name@revision. An address, as train has it, \
                          counts no teacher."
                    .to_owned(),
                ..key
            },
            // What takes no memory.
            "out" | "epochs" | "eval_data" => Key {
                is_essential: false,
                ..key
            },
            _ => key,
        });
        PlanOptions::keys().into_iter().chain(train).collect()
    }
}

/// Where the work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On one card.
    Card,
    /// On the CPU, in the machine's memory.
    Cpu,
}

impl PlanConfig {
    /// Checks what `plan` itself is told, and what `train` would refuse.
    ///
    /// # Errors
    /// The first setting outside its meaning, by name.
    pub fn validate(&self) -> Result<()> {
        settings::check_limits(&self.options)?;
        let train = &self.train;
        let sizes = [
            ("batch_size", train.batch_size, BATCH_SIZE_MAX),
            ("grad_accumulation", train.grad_accumulation, BATCH_SIZE_MAX),
            ("prefetch_frames", train.prefetch_frames, ROWS_MAX),
            ("shuffle_buffer", train.shuffle_buffer, ROWS_MAX),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(Error::Config(format!("{name}: must lie in 1..={most}")));
            }
        }
        // Neither a student nor a run directory is needed to count.
        TrainConfig {
            student: "student".into(),
            out: "run".into(),
            ..train.clone()
        }
        .validate()
    }

    /// The CPU where that is asked for, else a card.
    pub fn place(&self) -> Place {
        match self.train.device.as_str() {
            "cpu" => Place::Cpu,
            _ => Place::Card,
        }
    }

    /// Bytes of a number of the student's activations.
    pub fn element(&self) -> u64 {
        element(self.train.dtype, self.place())
    }

    /// Bytes of a weight of the teacher that is not in four bits, and of its activations.
    pub fn teacher_element(&self) -> u64 {
        element(self.options.teacher_dtype, self.place())
    }

    /// Tokens of a sequence.
    pub fn seq_len(&self) -> u64 {
        self.options.seq_len as u64
    }

    /// Prompts that are answered for the report.
    pub fn sample_answers(&self) -> u64 {
        self.train.sample_answers as u64
    }

    /// Tokens of a pass, padding included.
    pub fn tokens(&self) -> u64 {
        let all = self.seq_len() * self.train.batch_size as u64;
        match self.train.pack_tokens {
            Some(most) => all.min(self.seq_len().max(most as u64)),
            None => all,
        }
    }

    /// Passes of a step, where every sequence has its full length.
    pub fn passes(&self) -> u64 {
        let sequences = (self.train.batch_size * self.train.grad_accumulation) as u64;
        (sequences * self.seq_len()).div_ceil(self.tokens())
    }

    /// Whether every weight is trained.
    pub fn is_full(&self) -> bool {
        self.train.tune == Tune::Full
    }

    /// The loss with every part that has a weight at some step.
    pub fn loss(&self) -> LossConfig {
        let steps = self.train.steps.unwrap_or(usize::MAX);
        self.train.loss.at_its_most(steps)
    }

    /// Coordinates of the state that comes with every row; 0 without one.
    pub fn state_rank(&self, teacher: Option<&ModelConfig>) -> u64 {
        let loss = self.loss();
        let needed = loss.needs_state() || loss.needs_states();
        match (self.options.state_rank, teacher) {
            (Some(rank), _) => rank as u64,
            (None, Some(teacher)) if needed => teacher.hidden_size as u64,
            (None, _) => 0,
        }
    }
}

fn element(dtype: ComputeDtype, place: Place) -> u64 {
    match (dtype, place) {
        (ComputeDtype::F32, _) | (ComputeDtype::Auto, Place::Cpu) => 4,
        (ComputeDtype::Bf16 | ComputeDtype::F16, _) | (ComputeDtype::Auto, Place::Card) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_train_is_one_of_plan_and_comes_back_as_it_was() {
        let mut config = PlanConfig::default();
        config.train.lora_rank = 8;
        config.train.pack_tokens = Some(700);
        config.train.loss.ot_weight = 0.5;
        config.options.state_rank = Some(128);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<PlanConfig>(&text).unwrap(), config);
        let train = toml::to_string(&config.train).unwrap();
        assert_eq!(
            toml::from_str::<PlanConfig>(&train).unwrap().train,
            config.train
        );
    }

    #[test]
    fn a_pass_is_cut_by_tokens_but_holds_one_sequence() {
        let mut config = PlanConfig::default();
        config.train.batch_size = 4;
        assert_eq!(config.tokens(), 2048);
        config.train.pack_tokens = Some(1500);
        assert_eq!(config.tokens(), 1500);
        config.train.pack_tokens = Some(100);
        assert_eq!(config.tokens(), 512);
    }

    #[test]
    fn every_key_is_there_once_and_the_broken_ones_are_named() {
        let keys = PlanConfig::keys();
        for (index, key) in keys.iter().enumerate() {
            assert!(
                keys[..index].iter().all(|other| other.path != key.path),
                "{}",
                key.path
            );
        }
        PlanConfig::default().validate().unwrap();
        type Break = fn(&mut PlanConfig);
        let broken: [(&str, Break); 4] = [
            ("seq_len", |c| c.options.seq_len = 0),
            ("batch_size", |c| c.train.batch_size = 5000),
            ("lora_rank", |c| c.train.lora_rank = 0),
            ("chunk_rows", |c| c.train.loss.chunk_rows = 0),
        ];
        for (name, breaks) in broken {
            let mut config = PlanConfig::default();
            breaks(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
    }
}
