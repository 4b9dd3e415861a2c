//! Tells the real trainer to answer prompts and to talk: what it prints where, what is not UTF-8, and what Ctrl-C ends.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use distill_tests::fixtures;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{ending, send_signal, text, trainer, trainer_refuses, trainer_succeeds, wait_until},
    pipeline::path_text,
};

/// A model whose answers never end by themselves, with room for long ones.
fn endless() -> Result<TempDir> {
    endless_model("qwen2-tied")
}

/// As [`endless`], of another fixture.
pub fn endless_model(model: &str) -> Result<TempDir> {
    let dir = fixtures::model_directory(model, "tokenizer")?;
    change(&dir.path().join("config.json"), |config| {
        config["max_position_embeddings"] = json!(100_000);
    })?;
    change(&dir.path().join("tokenizer_config.json"), |config| {
        config["eos_token"] = Value::Null;
    })?;
    fs::remove_file(dir.path().join("generation_config.json"))?;
    Ok(dir)
}

pub fn change(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut value = serde_json::from_slice(&fs::read(path)?)?;
    change(&mut value);
    Ok(fs::write(path, value.to_string())?)
}

/// What was printed on standard output.
pub fn printed(args: &[&str]) -> Result<String> {
    Ok(String::from_utf8(trainer_succeeds(args).stdout)?)
}

#[test]
fn answers_are_printed_as_text_and_as_json_lines() -> Result<()> {
    let student = endless()?;
    let prompts = student.path().join("prompts.jsonl");
    let lines = [
        json!({"prompt": "once"}),
        json!({"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "left out"}]}),
    ];
    fs::write(&prompts, lines.map(|line| line.to_string()).join("\n"))?;
    let base = [
        "generate",
        "--student",
        path_text(student.path()),
        "--max-new-tokens",
        "6",
    ];
    let one = printed(&[&base[..], &["--prompt", "one, two"]].concat())?;
    assert!(one.ends_with('\n') && !one.contains("---"), "{one:?}");
    let all = [
        "--prompt",
        "one, two",
        "three",
        "--prompts",
        path_text(&prompts),
    ];
    let several = printed(&[&base[..], &all].concat())?;
    for title in [
        "--- 1: one, two\n",
        "--- 2: three\n",
        "--- 3: once\n",
        "--- 4: hello\n",
    ] {
        assert!(several.contains(title), "{several}");
    }
    // The same answer among others.
    assert!(
        several.contains(&format!("--- 1: one, two\n{one}")),
        "{several}"
    );
    let json = printed(&[&base[..], &all, &["--json"]].concat())?;
    let json: Vec<Value> = json
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let asked: Vec<&Value> = json.iter().map(|line| &line["prompt"]).collect();
    assert_eq!(asked, ["one, two", "three", "once", "hello"]);
    for line in &json {
        assert_eq!(
            (&line["finish"], &line["tokens"]),
            (&json!("length"), &json!(6))
        );
    }
    assert_eq!(
        format!("{}\n", json[0]["text"].as_str().context("a text")?),
        one
    );
    Ok(())
}

#[test]
fn prompts_that_cannot_be_asked_are_refused_before_weights_are_read() -> Result<()> {
    let student = endless()?;
    fs::remove_file(student.path().join("model.safetensors"))?;
    let base = ["generate", "--student", path_text(student.path())];
    for (flags, part) in [
        (&["--prompt", ""][..], "prompt 1: the prompt is empty"),
        (&[], "--prompt TEXT"),
        (&["--prompt", "a", "--compare"], "--adapter DIR"),
        (&["--prompt", "a", "--top-p", "2"], "top_p"),
        (&["--prompts", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (&["--prompt", "a", "--adapter", "/nowhere"], "/nowhere"),
    ] {
        let said = trainer_refuses(&[&base, flags].concat());
        assert!(said.contains(part), "{flags:?}: {said}");
    }
    let said = trainer_refuses(&["chat"]);
    assert!(said.contains("--student DIR"), "{said}");
    Ok(())
}

/// A conversation with a program, whose screen is read all the time.
pub struct Talk {
    pub child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Talk {
    fn begin(flags: &[&str]) -> Result<Self> {
        Self::with("chat", flags)
    }

    pub fn with(command: &str, flags: &[&str]) -> Result<Self> {
        let mut child = trainer(&[&[command], flags].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut out = child.stdout.take().context("its output")?;
        let screen = Arc::<Mutex<Vec<u8>>>::default();
        std::thread::spawn({
            let screen = Arc::clone(&screen);
            move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = out.read(&mut bytes) {
                    screen.lock().expect("its reader").extend(&bytes[..count]);
                }
            }
        });
        Ok(Self { child, screen })
    }

    pub fn say(&mut self, line: &[u8]) -> Result<()> {
        Ok(self
            .child
            .stdin
            .as_mut()
            .context("its input")?
            .write_all(line)?)
    }

    pub fn shown(&self) -> usize {
        self.screen.lock().map_or(0, |screen| screen.len())
    }

    pub fn lines(&self) -> usize {
        let ends = |screen: &[u8]| screen.iter().filter(|byte| **byte == b'\n').count();
        self.screen.lock().map_or(0, |screen| ends(&screen))
    }
}

#[test]
fn ctrl_c_ends_an_answer_and_the_end_of_input_the_program() -> Result<()> {
    let student = endless()?;
    let student = path_text(student.path());
    let flags = [
        "--student",
        student,
        "--max-new-tokens",
        "90000",
        "--temperature",
        "0",
    ];
    let mut talk = Talk::begin(&flags)?;
    for turn in 1..=3 {
        let before = talk.shown();
        // What is no UTF-8 is not said, and does not end anything.
        talk.say(b"\xff\xfe\n\n/reset\nhello there\n")?;
        wait_until("an answer", || talk.shown() > before + 3);
        assert!(talk.child.try_wait()?.is_none(), "it ended by itself");
        send_signal(&talk.child, libc::SIGINT);
        wait_until("its end", || talk.lines() >= turn);
    }
    drop(talk.child.stdin.take());
    assert_eq!(ending(&mut talk.child)?.code(), Some(0));
    // Another signal ends it, whatever it does.
    for is_answering in [true, false] {
        let mut talk = Talk::begin(&flags)?;
        talk.say(b"hello\n")?;
        wait_until("an answer", || talk.shown() > 3);
        if !is_answering {
            send_signal(&talk.child, libc::SIGINT);
            wait_until("its end", || talk.lines() > 0);
        }
        send_signal(&talk.child, libc::SIGTERM);
        assert_eq!(ending(&mut talk.child)?.code(), Some(128 + libc::SIGTERM));
    }
    Ok(())
}

#[test]
fn a_tokenizer_without_a_template_says_so_and_continues_plain_text() -> Result<()> {
    let student = endless()?;
    change(&student.path().join("tokenizer_config.json"), |config| {
        config["chat_template"] = Value::Null;
    })?;
    drop(fs::remove_file(student.path().join("chat_template.jinja")));
    let student = path_text(student.path());
    let decoding = ["--max-new-tokens", "5", "--temperature", "0"];
    let mut child = trainer(&[&["chat", "--student", student][..], &decoding].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("its input")?
        .write_all(b"one two\n")?;
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("no chat template"),
        "{}",
        text(&output)
    );
    let plain = ["generate", "--student", student, "--prompt", "one two"];
    let plain = printed(&[&plain[..], &decoding].concat())?;
    assert_eq!(String::from_utf8(output.stdout)?, plain);
    let chat = [
        "generate",
        "--student",
        student,
        "--prompt",
        "one two",
        "--chat",
    ];
    let said = trainer_refuses(&chat);
    assert!(said.contains("chat template"), "{said}");
    Ok(())
}
