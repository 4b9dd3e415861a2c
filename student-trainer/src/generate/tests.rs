//! Tests of answers in text: what they end with, what prompts are refused, and an adapter that is taken off and put on again.

use std::{fs, path::Path};

use distill_model::{Decoder, Sampling, answers::end_ids, testing::TinyModel};
use distill_text::{ChatTemplateKwargs, TokenizerFiles};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{ComputeDtype, Quantize},
    test_models::{logged, set_in_config, write_adapter, write_student},
};

const WORDS: usize = 40;

fn student() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_student(dir.path(), TinyModel::qwen2(), WORDS);
    dir
}

fn place() -> Place {
    Place::choose("cpu", ComputeDtype::F32).unwrap()
}

fn reader(files: &StudentFiles) -> Reader<'_> {
    Reader {
        student: Some(prompt_reader(files)),
        chat: false,
        system: None,
    }
}

fn decoding(max_new_tokens: usize) -> Decoding {
    Decoding {
        max_new_tokens,
        sampling: Sampling::GREEDY,
        seed: 1,
    }
}

/// The answers to some texts, and what was heard of each while they were written.
fn write(
    files: &StudentFiles,
    decoder: &Decoder,
    decoding: Decoding,
    stops: &[&str],
    texts: &[&str],
) -> (Vec<Written>, Vec<String>) {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    let asked = texts.iter().zip(0..).map(|(text, seed)| Asked {
        ids: reader(files).text(text).unwrap().ids,
        seed,
    });
    let shutdown = Shutdown::default();
    let writer = Writer::new(decoder, files, decoding, &stops, &shutdown).unwrap();
    let mut heard = vec![String::new(); texts.len()];
    let mut hear = |one: Heard<'_>| {
        match one {
            Heard::Text(number, text) => heard[number] += text,
            Heard::Whole(number, written) => assert_eq!(written.text, heard[number]),
        }
        Ok(true)
    };
    let written = writer.write(&asked.collect::<Vec<_>>(), &mut hear).unwrap();
    (written, heard)
}

#[test]
fn an_answer_ends_at_its_length_before_a_stop_string_and_at_an_end() {
    let dir = student();
    let files = StudentFiles::open(dir.path()).unwrap();
    let (decoder, _) = load(&files, None, Some(Quantize::Nf4), &place()).unwrap();
    let texts = ["w1 w2", "w3", "w4 w5 w6"];
    let (free, heard) = write(&files, &decoder, decoding(12), &[], &texts);
    for (one, heard) in free.iter().zip(&heard) {
        assert_eq!(one.text, *heard);
        assert_eq!((one.finish, one.tokens), (Finish::Length, 12));
    }
    // Words 3 and 4 of the first answer, across two tokens.
    let words: Vec<&str> = free[0].text.split(' ').collect();
    let stop = format!("{} {}", words[3], words[4]);
    let (stopped, _) = write(&files, &decoder, decoding(12), &[&stop], &texts);
    let at = free[0].text.find(&stop).unwrap();
    assert_eq!(stopped[0].text, free[0].text[..at]);
    assert_eq!(stopped[0].finish, Finish::Stop);
    // An end that the model's own configuration names.
    let end: u32 = words[3][1..].parse().unwrap();
    let config = json!({"eos_token_id": end}).to_string();
    fs::write(dir.path().join("generation_config.json"), config).unwrap();
    let (ended, _) = write(&files, &decoder, decoding(12), &[], &texts);
    let until = words.iter().take_while(|word| **word != words[3]);
    let until: Vec<&str> = until.copied().collect();
    assert_eq!(
        (ended[0].text.as_str(), ended[0].finish),
        (until.join(" ").as_str(), Finish::End)
    );
    assert_eq!(ended[0].tokens, until.len() + 1);
}

#[test]
fn a_prompt_without_room_has_an_empty_answer_and_others_go_on() {
    let dir = student();
    set_in_config(dir.path(), "max_position_embeddings", 4.into());
    let files = StudentFiles::open(dir.path()).unwrap();
    let (decoder, _) = load(&files, None, Some(Quantize::None), &place()).unwrap();
    let shutdown = Shutdown::default();
    let writer = Writer::new(&decoder, &files, decoding(9), &[], &shutdown).unwrap();
    let asked = |length: u32| Asked {
        ids: (1..=length).collect(),
        seed: 0,
    };
    let mut whole = Vec::new();
    let mut hear = |heard: Heard<'_>| {
        if let Heard::Whole(number, written) = heard {
            whole.push((number, written.tokens));
        }
        Ok(true)
    };
    let written = writer.write(&[asked(4), asked(2)], &mut hear).unwrap();
    assert_eq!(
        (written[0].finish, written[0].text.as_str()),
        (Finish::Length, "")
    );
    assert_eq!((written[1].finish, written[1].tokens), (Finish::Length, 2));
    assert_eq!(whole, [(0, 0), (1, 2)]);
    assert!(writer.write(&[], &mut |_| Ok(true)).unwrap().is_empty());
    // Nobody listens any more, or somebody asked to stop.
    let written = writer
        .write(&[asked(1), asked(2)], &mut |_| Ok(false))
        .unwrap();
    assert!(written.iter().all(|one| one.finish == Finish::Interrupted));
    shutdown.request();
    let written = writer.write(&[asked(1)], &mut |_| Ok(true)).unwrap();
    assert_eq!(
        (written[0].finish, written[0].tokens),
        (Finish::Interrupted, 0)
    );
}

#[test]
fn an_adapter_that_is_taken_off_leaves_the_base_as_it_was() {
    let dir = student();
    let adapter = dir.path().join("adapter");
    write_adapter(dir.path(), &adapter);
    let files = StudentFiles::open(dir.path()).unwrap();
    let texts = ["w1 w2", "w7 w8 w9"];
    let write = |decoder: &Decoder| write(&files, decoder, decoding(20), &[], &texts).0;
    let (base, none) = load(&files, None, Some(Quantize::Nf4), &place()).unwrap();
    assert!(none.is_none());
    let base = write(&base);
    let (decoder, switch) = load(&files, Some(&adapter), Some(Quantize::Nf4), &place()).unwrap();
    let switch = switch.unwrap();
    let adapted = write(&decoder);
    assert_ne!(adapted, base);
    for (on, expected) in [
        (false, &base),
        (true, &adapted),
        (true, &adapted),
        (false, &base),
    ] {
        switch.put(on).unwrap();
        assert_eq!(write(&decoder), *expected);
    }
}

#[test]
fn a_base_that_an_adapter_does_not_have_is_asked_for() {
    let dir = student();
    let adapter = dir.path().join("adapter");
    write_adapter(dir.path(), &adapter);
    let kwargs = ChatTemplateKwargs::default();
    let find = |student: &str| {
        let shutdown = Shutdown::default();
        let found = find_student(Path::new(student), Some(&adapter), &kwargs, &shutdown);
        found
            .map(|(files, _)| files.dir)
            .map_err(|error| error.to_string())
    };
    assert_eq!(find("").unwrap(), dir.path().canonicalize().unwrap());
    let config = adapter.join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (base, part) in [
        (json!("/nowhere/at/all"), "`/nowhere/at/all`"),
        (json!(null), "names no base"),
        (json!(""), "names no base"),
    ] {
        fields["base_model_name_or_path"] = base;
        fs::write(&config, fields.to_string()).unwrap();
        let error = find("").unwrap_err();
        for part in [part, "adapter_config.json", "--student DIR"] {
            assert!(error.contains(part), "{error}");
        }
        find(dir.path().to_str().unwrap()).unwrap();
    }
    let error = find_student(Path::new(""), None, &kwargs, &Shutdown::default());
    assert!(error.err().unwrap().to_string().contains("--student DIR"));
}

#[test]
fn prompts_that_cannot_be_asked_say_why_and_where() {
    let dir = student();
    set_in_config(dir.path(), "max_position_embeddings", 6.into());
    let files = StudentFiles::open(dir.path()).unwrap();
    let reader = reader(&files);
    for (text, part) in [
        ("", "empty"),
        (" \n", "empty"),
        ("w1 w2 w3 w4 w5 w6", "the prompt has 6 tokens"),
    ] {
        let error = reader.text(text).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let path = dir.path().join("prompts.jsonl");
    let refused = |text: &[u8], part: &str| {
        fs::write(&path, text).unwrap();
        let error = reader.file(&path).unwrap_err().to_string();
        assert!(
            error.contains("prompts.jsonl") && error.contains(part),
            "{error}"
        );
    };
    refused(b"", "no prompt in this file");
    refused(b"{\"prompt\": \"w1\"}\n\nx\n", ":3: ");
    refused(b"[1]", "expected an object with `prompt`");
    refused(b"{\"text\": \"w1\"}", "expected an object with `prompt`");
    refused(b"{\"prompt\": 5}", "`prompt` is neither");
    refused(b"{\"messages\": \"w1\"}", "`messages` is neither");
    refused(b"{\"prompt\": \"\"}", "empty");
    refused(b"{\"prompt\": \"w1 w1 w1 w1 w1 w1 w1\"}", "has 7 tokens");
    refused(b"{\"messages\": [1]}", "`messages`: message 0");
    refused(b"{\"messages\": []}", "no message to answer");
    refused(
        b"{\"prompt\": \"w1\", \"messages\": []}",
        "both `prompt` and `messages`",
    );
    refused(
        b"{\"messages\": [{\"role\": \"assistant\", \"content\": \"w1\"}]}",
        "no message to answer",
    );
    // No template here.
    refused(
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"w1\"}]}",
        "chat template",
    );
    refused(b"\xff", "UTF-8");
    fs::write(
        &path,
        "\u{feff}{\"prompt\": \"w1 w2\", \"completion\": \"w3\"}",
    )
    .unwrap();
    assert_eq!(reader.file(&path).unwrap()[0].ids, [1, 2]);
    fs::write(
        dir.path().join("chat_template.jinja"),
        "w1 {{ messages[0].content }} w9",
    )
    .unwrap();
    let files = StudentFiles::open(dir.path()).unwrap();
    let chat = Reader {
        student: Some(prompt_reader(&files)),
        chat: true,
        system: Some("w4"),
    };
    assert_eq!(chat.text("w5").unwrap().ids, [1, 4, 9]);
    let turn = |role: &str| json!({"role": role, "content": role.replace("user", "w7")});
    let question = chat.messages(vec![turn("system"), turn("user"), turn("assistant")]);
    assert_eq!(question.unwrap().text, "w7");
}

#[test]
fn a_tokenizer_without_an_end_anywhere_is_warned_of_once() {
    let dir = student();
    let opened = || {
        logged(|| {
            let tokenizer = TokenizerFiles::open(dir.path()).unwrap();
            assert!(end_ids(dir.path(), &tokenizer).unwrap().len() <= 1);
        })
    };
    assert_eq!(opened(), "");
    for none in ["{}", r#"{"eos_token": null}"#] {
        fs::write(dir.path().join("tokenizer_config.json"), none).unwrap();
    }
    let said = opened();
    let directory = dir.path().display().to_string();
    for part in ["WARN", &directory, "no end of sequence", "set eos_token in"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(opened(), "", "said twice");
}

#[test]
fn an_answer_does_not_steer_the_terminal() {
    assert_eq!(harmless("a\u{1b}[2Jb\r\n\tc\u{7}"), "a[2Jb\n\tc");
    assert!(matches!(harmless("plain 你好\n"), Cow::Borrowed(_)));
}
