//! Ties the remedies in messages to the command lines: every flag that a message names is one of the command that says it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::Command;

/// Beginnings of source paths, and the commands that say what is in there; the first that fits counts.
const SPEAKERS: [(&str, &[&str]); 21] = [
    ("student-trainer/src/train/", &["train"]),
    ("student-trainer/src/checkpoint/", &["train"]),
    ("student-trainer/src/config/train.rs", &["train"]),
    ("student-trainer/src/config/lora.rs", &["train"]),
    ("student-trainer/src/run/", &["train", "pretrain"]),
    ("student-trainer/src/client/stream.rs", &["train"]),
    ("student-trainer/src/client/", &["train", "eval"]),
    ("student-trainer/src/align/", &["train"]),
    ("student-trainer/src/eval/", &["eval"]),
    ("student-trainer/src/generate/chat.rs", &["chat"]),
    ("student-trainer/src/generate/", &["generate"]),
    ("student-trainer/src/pretrain/", &["pretrain"]),
    ("student-trainer/src/quantize/", &["quantize"]),
    ("student-trainer/src/export/", &["export"]),
    ("student-trainer/src/push/", &["push"]),
    ("student-trainer/src/plan/", &["plan"]),
    ("student-trainer/src/loss_command.rs", &["losses"]),
    ("student-trainer/src/model_files/", &["quantize", "export"]),
    ("student-trainer/src/", &["train"]),
    ("teacher-server/src/commands.rs", &["verify"]),
    ("teacher-server/src/", &["serve", "precompute"]),
];
/// Flags of the other program or of another command, which the message names with it.
const ELSEWHERE: [(&str, &str); 12] = [
    ("student-trainer/src/loss/", "state"),
    ("student-trainer/src/plan/", "state"),
    ("student-trainer/src/plan/", "cache"),
    ("student-trainer/src/client/absence.rs", "model"),
    ("student-trainer/src/client/absence.rs", "corpus"),
    ("student-trainer/src/generate/chat.rs", "prompts"),
    ("student-trainer/src/run/", "resume"),
    ("student-trainer/src/run/", "logdir"),
    ("student-trainer/src/student.rs", "from"),
    // What it is built with.
    ("student-trainer/src/ranks/", "features"),
    ("student-trainer/src/train/together.rs", "vram-mode"),
    ("teacher-server/src/", "repair"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Source files below `directory`, without those of tests, by their path from the root.
fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).expect("sources that can be read") {
        let path = entry.expect("sources that can be read").path();
        let name = path
            .file_name()
            .expect("sources that can be read")
            .to_string_lossy()
            .into_owned();
        if name.contains("test") {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("sources that can be read");
            let from_root = path.strip_prefix(root()).expect("sources that can be read");
            found.push((from_root.display().to_string(), text));
        }
    }
}

/// Flags in what a program may print: no comments, no tests.
fn flags(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    lines
        .flat_map(|line| line.split("--").skip(1))
        .map(|rest| rest.split(|c| !is_of_name(c)).next().unwrap_or_default())
        .filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(|flag| flag.trim_end_matches('-').to_owned())
        .collect()
}

#[test]
fn every_flag_in_a_message_is_one_of_the_command_that_says_it() {
    let programs = [
        student_trainer::cli::command(),
        teacher_server::cli::command(),
    ];
    let has = |command: &str, flag: &str| {
        let commands = programs.iter().flat_map(Command::get_subcommands);
        let mut commands = commands.filter(|one| one.get_name() == command);
        let command = commands.next().expect("sources that can be read");
        command.get_arguments().any(|argument| {
            let aliases = argument.get_visible_aliases().unwrap_or_default();
            argument.get_long() == Some(flag) || aliases.contains(&flag)
        })
    };
    let mut files = Vec::new();
    for program in ["student-trainer/src", "teacher-server/src"] {
        sources(&root().join(program), &mut files);
    }
    let (mut wrong, mut looked_at) = (Vec::new(), 0);
    for (path, text) in &files {
        // Declarations of flags name each other.
        if path.ends_with("/cli.rs") || path.contains("/config/") && !path.ends_with("/train.rs") {
            continue;
        }
        let speaker = SPEAKERS.iter().find(|(begin, _)| path.starts_with(begin));
        let (_, commands) = speaker.unwrap_or_else(|| panic!("who says what is in {path}?"));
        for flag in flags(text) {
            looked_at += 1;
            let elsewhere = ELSEWHERE
                .iter()
                .any(|(begin, other)| path.starts_with(begin) && flag == *other);
            if !elsewhere && !commands.iter().all(|command| has(command, &flag)) {
                wrong.push(format!(
                    "{path}: --{flag} is no flag of {}",
                    commands.join(" and ")
                ));
            }
        }
    }
    assert!(looked_at > 60, "only {looked_at} flags were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
