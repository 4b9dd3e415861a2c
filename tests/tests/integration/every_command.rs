//! Provides every command of both programs as it is used, for tests of what holds for all of them.

use std::{
    cell::Cell,
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Result;
use candle_core::{Device, Tensor};
use distill_tests::fixtures;

use crate::{
    harness::{Listen, Teacher, teacher, teacher_succeeds, trainer},
    pipeline::{Setup, path_text},
};

/// One use of a command, not yet run.
pub struct Use {
    /// The subcommand.
    pub name: &'static str,
    /// Whether its result is what it prints.
    pub prints: bool,
    pub command: Command,
}

/// What the commands need: models, a corpus, a server, a cache and a run.
pub struct Place {
    pub setup: Setup,
    pub server: Teacher,
    pub cache: PathBuf,
    pub run: PathBuf,
    pub logits: PathBuf,
    made: Cell<usize>,
}

impl Place {
    pub fn new() -> Result<Self> {
        let setup = Setup::new()?;
        let server = setup.serve(&Listen::Loopback, &[]);
        let at = |name: &str| setup.work.path().join(name);
        let logits = at("logits.safetensors");
        let values = Tensor::rand(-1f32, 1f32, (4, 8), &Device::Cpu)?;
        candle_core::safetensors::save(&HashMap::from([("logits", values)]), &logits)?;
        let mut place = Self {
            cache: at("cache"),
            run: at("run"),
            setup,
            server,
            logits,
            made: Cell::new(0),
        };
        let cache = path_text(&place.cache).to_owned();
        teacher_succeeds(&place.capture_args(&cache));
        place.run = place.setup.train(&place.server, "run", &["--steps", "1"]);
        Ok(place)
    }

    /// A path where nothing is.
    pub fn fresh(&self) -> String {
        self.made.set(self.made.get() + 1);
        let path = self
            .setup
            .work
            .path()
            .join(format!("out-{}", self.made.get()));
        path_text(&path).to_owned()
    }

    fn capture_args<'a>(&'a self, out: &'a str) -> Vec<&'a str> {
        let model = path_text(self.setup.teacher.path());
        let corpus = path_text(&self.setup.corpus);
        let base = ["precompute", "--model", model, "--corpus", corpus];
        [&base, ["--seq-len", "48", "--out", out].as_slice()].concat()
    }

    /// `train` into a fresh directory.
    pub fn train(&self, flags: &[&str]) -> Command {
        let out = self.fresh();
        trainer(&self.setup.train_args(&self.server, Path::new(&out), flags))
    }

    /// `eval` of prompts against the teacher.
    pub fn eval(&self, flags: &[&str]) -> Command {
        let data = fixtures::path("corpus/completions.jsonl");
        let (student, data) = (path_text(self.setup.student.path()), path_text(&data));
        let base = ["eval", "--student", student, "--data", data];
        let more = ["--teacher", self.server.address(), "--max-new-tokens", "2"];
        trainer(&[&base, more.as_slice(), flags].concat())
    }

    /// `generate` after two prompts.
    pub fn generate(&self, flags: &[&str]) -> Command {
        let student = path_text(self.setup.student.path());
        let base = ["generate", "--student", student, "--max-new-tokens", "2"];
        let prompts = ["--prompt", "one two", "three"];
        trainer(&[&base, prompts.as_slice(), flags].concat())
    }

    /// `generate` by the server.
    pub fn generate_by_address(&self, flags: &[&str]) -> Command {
        let server = self.server.address();
        let base = ["generate", "--teacher", server, "--max-new-tokens", "2"];
        let prompts = ["--prompt", "one two", "three"];
        trainer(&[&base, prompts.as_slice(), flags].concat())
    }

    /// `chat` with what comes from `input`.
    pub fn chat(&self, flags: &[&str], input: Stdio) -> Command {
        let student = path_text(self.setup.student.path());
        let base = ["chat", "--student", student, "--max-new-tokens", "2"];
        let mut command = trainer(&[base.as_slice(), flags].concat());
        command.stdin(input);
        command
    }

    /// `losses` of some logits.
    pub fn losses(&self, flags: &[&str]) -> Command {
        let logits = path_text(&self.logits);
        trainer(&[&["losses", "--student", logits, "--teacher", logits], flags].concat())
    }

    /// `report` of the run.
    pub fn report(&self, flags: &[&str]) -> Command {
        trainer(&[&["report", path_text(&self.run)], flags].concat())
    }

    /// `push` of the run, whose student was a directory.
    pub fn push(&self, flags: &[&str]) -> Command {
        let names = ["--to", "org/name", "--base", "org/base"];
        trainer(&[&["push", path_text(&self.run)], names.as_slice(), flags].concat())
    }

    /// `ablate` of one arm into a fresh directory.
    pub fn ablate(&self, flags: &[&str]) -> Command {
        let (arms, out) = (self.fresh(), self.fresh());
        let (teacher, corpus) = (self.server.address(), path_text(&self.setup.corpus));
        let student = path_text(self.setup.student.path());
        let text = format!(
            "seeds = [1, 2]\nmetric = \"ce\"\nequal_gradients = false\n[base]\nteacher = \"{teacher}\"\nstudent = \"{student}\"\n\
             steps = 1\neval_data = [\"{corpus}\"]\neval_kl = false\neval_max_sequences = 1\n[[arm]]\nname = \"CE\"\n\
             loss = {{ kl_weight = 0.0 }}\n"
        );
        std::fs::write(&arms, text).expect("a file in a directory that is there");
        trainer(&[&["ablate", &arms, "--out", &out], flags].concat())
    }

    /// `precompute` into a fresh directory.
    pub fn capture(&self, flags: &[&str]) -> Command {
        let out = self.fresh();
        teacher(&[&self.capture_args(&out), flags].concat())
    }

    /// `serve` of the cache.
    pub fn serve(&self, flags: &[&str]) -> Command {
        let base = [
            "serve",
            "--bind",
            "127.0.0.1:0",
            "--cache",
            path_text(&self.cache),
        ];
        teacher(&[&base, flags].concat())
    }

    /// All commands of the trainer.
    pub fn trainer_commands(&self) -> Vec<Use> {
        let model = path_text(self.setup.teacher.path());
        let config = self.setup.student.path().join("config.json");
        let corpus = path_text(&self.setup.corpus);
        let (quantized, exported, trained) = (self.fresh(), self.fresh(), self.fresh());
        let (file, lora) = (self.fresh(), self.fresh());
        let student = path_text(self.setup.student.path());
        let adapter = self.run.join("adapter");
        let export = |format, out| {
            let adapter = path_text(&adapter);
            let merged = ["export", "--base", student, "--adapter", adapter];
            trainer(&[&merged, ["--format", format, "--out", out].as_slice()].concat())
        };
        let pretrain = [
            "pretrain",
            "--model-config",
            path_text(&config),
            "--tokenizer",
            model,
            "--data",
            corpus,
            "--seq-len",
            "48",
            "--steps",
            "1",
            "--out",
            &trained,
        ];
        let result = |name, command| Use {
            name,
            prints: true,
            command,
        };
        let work = |name, command| Use {
            name,
            prints: false,
            command,
        };
        vec![
            work("train", self.train(&["--steps", "1"])),
            result("train", self.train(&["--print-config"])),
            result("eval", self.eval(&["--json"])),
            result("eval", self.eval(&[])),
            result("generate", self.generate(&[])),
            result("generate", self.generate(&["--json"])),
            result("generate", self.generate_by_address(&[])),
            result("generate", self.generate_by_address(&["--json"])),
            // Nothing is said.
            work("chat", self.chat(&[], Stdio::null())),
            work("pretrain", trainer(&pretrain)),
            work(
                "quantize",
                trainer(&["quantize", "--from", model, "--out", &quantized]),
            ),
            work(
                "export",
                trainer(&["export", "--base", model, "--out", &exported]),
            ),
            work("export", export("gguf", &file)),
            work("export", export("gguf-lora", &lora)),
            result("plan", trainer(&["plan", "--preset", "reference-24gb"])),
            result(
                "plan",
                trainer(&["plan", "--preset", "reference-24gb", "--json"]),
            ),
            result("report", self.report(&[])),
            // Nothing is pushed.
            result("push", self.push(&[])),
            result("losses", self.losses(&[])),
            result("losses", self.losses(&["--json"])),
            result("ablate", self.ablate(&[])),
            result("ablate", self.ablate(&["--json"])),
        ]
    }

    /// All commands of the teacher that end by themselves.
    pub fn teacher_commands(&self) -> Vec<Use> {
        let cache = path_text(&self.cache);
        let merged = self.fresh();
        let model = path_text(self.setup.teacher.path());
        let result = |name, command| Use {
            name,
            prints: true,
            command,
        };
        let work = |name, command| Use {
            name,
            prints: false,
            command,
        };
        vec![
            result("serve", self.serve(&["--print-config"])),
            work("precompute", self.capture(&[])),
            work("precompute", self.capture(&["--json"])),
            result("precompute", self.capture(&["--print-config"])),
            result("precompute", self.capture(&["--dry-run", "--json"])),
            result("inspect", teacher(&["inspect", cache])),
            result(
                "inspect",
                teacher(&["inspect", cache, "--model", model, "--json"]),
            ),
            result("verify", teacher(&["verify", cache])),
            result("verify", teacher(&["verify", cache, "--json"])),
            result("merge", teacher(&["merge", "--out", &merged, cache])),
        ]
    }

    /// Both.
    pub fn commands(&self) -> Vec<Use> {
        let mut commands = self.trainer_commands();
        commands.extend(self.teacher_commands());
        commands
    }
}

#[test]
fn every_command_is_among_those_that_are_tested_together() -> Result<()> {
    let place = Place::new()?;
    for (program, uses) in [
        (student_trainer::cli::command(), place.trainer_commands()),
        (teacher_server::cli::command(), place.teacher_commands()),
    ] {
        for command in program.get_subcommands() {
            let name = command.get_name();
            assert!(uses.iter().any(|used| used.name == name), "{name}");
        }
    }
    Ok(())
}
