use std::{fs, path::Path};

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::testing::{
    CHATML, shared, tokenizer, tokenizer_json_with_begin_of_text, tokenizer_with,
};

/// Writes one corpus file and reads it.
fn read(
    tokenizer: &TokenizerFiles,
    name: &str,
    content: impl AsRef<[u8]>,
    windowing: &Windowing,
) -> Result<Corpus> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    read_corpus(&[path], tokenizer, windowing, &mut |_| ())
}

fn jsonl(tokenizer: &TokenizerFiles, line: serde_json::Value, seq_len: usize) -> Result<Corpus> {
    read(
        tokenizer,
        "c.jsonl",
        format!("{line}\n"),
        &Windowing::new(seq_len),
    )
}

/// The text of every target, `·` between tokens; bytes of divided characters as hexadecimal.
fn targets(sequence: &Sequence) -> String {
    let tokens = sequence.byte_offsets.iter().zip(&sequence.target_mask);
    let words = tokens
        .filter(|(_, target)| **target)
        .map(|(&(start, end), _)| {
            let bytes = &sequence.text.as_bytes()[start as usize..end as usize];
            std::str::from_utf8(bytes).map_or_else(|_| format!("{bytes:02x?}"), str::to_owned)
        });
    words.collect::<Vec<_>>().join("·")
}

fn check(sequence: &Sequence, seq_len: usize) {
    let tokens = sequence.token_ids.len();
    assert!(tokens <= seq_len && tokens >= 2);
    assert_eq!(
        (sequence.byte_offsets.len(), sequence.target_mask.len()),
        (tokens, tokens)
    );
    assert!(!sequence.target_mask[0] && sequence.targets() > 0);
    let within = |&(start, end): &(u32, u32)| start <= end && end as usize <= sequence.text.len();
    assert!(sequence.byte_offsets.iter().all(within));
}

#[test]
fn every_token_of_text_but_the_first_is_a_target() {
    let (_dir, files) = tokenizer();
    for corpus in [
        read(&files, "c.txt", "hello wé世", &Windowing::new(64)).unwrap(),
        jsonl(&files, json!({"text": "hello wé世"}), 64).unwrap(),
    ] {
        let [sequence] = corpus.sequences.as_slice() else {
            panic!()
        };
        assert_eq!(targets(sequence), " w·[c3]·[a9]·[e4]·[b8]·[96]");
        assert_eq!(sequence.text, "hello wé世");
        assert_eq!((corpus.documents, corpus.tokens, corpus.targets), (1, 7, 6));
    }
}

#[test]
fn targets_of_a_prompt_with_completion_are_the_completion_and_its_end() {
    let (_dir, files) = tokenizer();
    let corpus = jsonl(
        &files,
        json!({"prompt": "hello ", "completion": "世!", "id": 3}),
        64,
    )
    .unwrap();
    let sequence = &corpus.sequences[0];
    assert_eq!(targets(sequence), "[e4]·[b8]·[96]·!·");
    assert_eq!(sequence.token_ids.last(), files.eos_id().as_ref());
    assert_eq!(sequence.byte_offsets.last(), Some(&(10, 10)));
    assert_eq!(
        sequence.target_mask,
        [false, false, true, true, true, true, true]
    );
}

#[test]
fn a_token_across_the_border_of_the_prompt_is_a_target() {
    let (_dir, files) = tokenizer();
    // " w" is one token, half of it prompt.
    let corpus = jsonl(&files, json!({"prompt": "a ", "completion": "wb"}), 64).unwrap();
    assert_eq!(targets(&corpus.sequences[0]), " w·b·");
}

#[test]
fn targets_of_messages_are_the_assistants_turns() {
    let (_dir, files) = tokenizer();
    let messages = json!({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "é"}
    ]});
    let corpus = jsonl(&files, messages, 200).unwrap();
    assert_eq!(
        targets(&corpus.sequences[0]),
        "hello·<|im_end|>·[c3]·[a9]·<|im_end|>"
    );
}

#[test]
fn sharegpt_and_alpaca_lines_are_conversations() {
    let (_dir, files) = tokenizer();
    let chat = |messages: serde_json::Value| {
        let corpus = jsonl(&files, json!({ "messages": messages }), 200).unwrap();
        corpus.fingerprint
    };
    let system = json!({"role": "system", "content": "s"});
    let (user, assistant) = (
        json!({"role": "user", "content": "q"}),
        json!({"role": "assistant", "content": "hello"}),
    );
    let turns = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "hello"}]);
    let renamed =
        json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "hello"}]);
    let with_system = json!([{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "hello"}]);
    for (line, expected) in [
        (
            json!({ "conversations": turns }),
            chat(json!([user, assistant])),
        ),
        (
            json!({ "conversations": renamed, "id": "x" }),
            chat(json!([user, assistant])),
        ),
        (
            json!({ "conversations": turns, "system": null }),
            chat(json!([user, assistant])),
        ),
        (
            json!({ "conversations": turns, "system": "s" }),
            chat(json!([system, user, assistant])),
        ),
        (
            json!({ "conversations": with_system, "system": "other" }),
            chat(json!([system, user, assistant])),
        ),
        (
            json!({"instruction": "q", "input": "", "output": "hello", "text": "?"}),
            chat(json!([user, assistant])),
        ),
        (
            json!({"instruction": "q", "input": "i", "output": "hello", "system": "s"}),
            chat(json!([system, {"role": "user", "content": "q\n\ni"}, assistant])),
        ),
    ] {
        let corpus = jsonl(&files, line.clone(), 200).unwrap();
        assert_eq!(corpus.fingerprint, expected, "{line}");
        assert_eq!(targets(&corpus.sequences[0]), "hello·<|im_end|>");
    }
}

#[test]
fn a_begin_of_text_stands_before_text_and_prompts_once() {
    let json = tokenizer_json_with_begin_of_text();
    let (_dir, files) = tokenizer_with(&json, CHATML);
    for text in ["hello", "<|endoftext|>hello"] {
        let corpus = jsonl(&files, json!({"text": text}), 64).unwrap();
        assert_eq!(corpus.sequences[0].token_ids.len(), 2);
        assert_eq!(targets(&corpus.sequences[0]), "hello");
    }
    let corpus = jsonl(&files, json!({"text": "abcdefghijklmnopqrstuvwxyz"}), 10).unwrap();
    let windows: Vec<_> = corpus
        .sequences
        .iter()
        .map(|s| (s.token_ids[0], targets(s)))
        .collect();
    assert_eq!(windows[1], (262, "j·k·l·m·n·o·p·q·r".to_owned()));
}

#[test]
fn longer_conversations_are_truncated_and_counted() {
    let (_dir, files) = tokenizer();
    let corpus = jsonl(
        &files,
        json!({"prompt": "abcdef", "completion": "gh世界"}),
        9,
    )
    .unwrap();
    // Nine tokens would end inside 世, so the cut is before it.
    assert_eq!(corpus.sequences[0].text, "abcdefgh");
    assert_eq!(targets(&corpus.sequences[0]), "g·h");
    assert_eq!(corpus.skipped.truncated, 1);
    let lines = "{\"prompt\": \"abcdefghijkl\", \"completion\": \"x\"}\n{\"text\": \"a\"}\n{\"text\": \"abc\"}\n";
    let corpus = read(&files, "c.jsonl", lines, &Windowing::new(9)).unwrap();
    let skipped = Skipped {
        truncated: 1,
        without_target: 1,
        too_short: 1,
        ..Skipped::default()
    };
    assert_eq!(
        (corpus.sequences.len(), corpus.documents, corpus.skipped),
        (1, 3, skipped)
    );
}

#[test]
fn ids_are_unique_and_the_fingerprint_is_the_contents() {
    let (_dir, files) = tokenizer();
    let line = "{\"text\": \"hello\\n\"}\n";
    let corpus = |lines: &str| read(&files, "c.jsonl", lines, &Windowing::new(64)).unwrap();
    let three = corpus(&line.repeat(3));
    let ids: std::collections::HashSet<u64> = three.sequences.iter().map(|s| s.id).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(three.sequences[0].id, corpus(line).sequences[0].id);
    assert_eq!(three.fingerprint, corpus(&line.repeat(3)).fingerprint);
    assert_ne!(three.fingerprint, corpus(&line.repeat(2)).fingerprint);
    let other_mask = corpus("{\"prompt\": \"h\", \"completion\": \"ab\"}\n");
    let same_ids = corpus("{\"text\": \"hab<|im_end|>\"}\n");
    assert_eq!(
        other_mask.sequences[0].token_ids,
        same_ids.sequences[0].token_ids
    );
    assert_eq!(other_mask.fingerprint, same_ids.fingerprint);
    let masked = corpus("{\"prompt\": \"ha\", \"completion\": \"b\"}\n");
    assert_eq!(
        masked.sequences[0].token_ids,
        same_ids.sequences[0].token_ids
    );
    assert_ne!(masked.fingerprint, same_ids.fingerprint);
    assert_ne!(masked.sequences[0].id, same_ids.sequences[0].id);
}

#[test]
fn errors_name_the_file_the_line_and_what_was_expected() {
    let (_dir, files) = tokenizer();
    for (content, expected) in [
        (
            &b"{\"text\": \"ok ok\"}\n\n{\"text\": 3}\n"[..],
            "c.jsonl:3: `text` must be a text",
        ),
        (b"{\"text\": \"ok\"", "c.jsonl:1: not JSON"),
        (b"[]\n", "c.jsonl:1: expected a JSON object"),
        (b"{\"conversations\": 1}", "`conversations` must be a list"),
        (
            b"{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"alien\", \"value\": \"a\"}]}",
            "c.jsonl:1: `conversations[1]` is from `alien`",
        ),
        (b"{\"conversations\": [{\"from\": \"human\"}]}", "`conversations[0]` has no `value`"),
        (b"{\"instruction\": \"x\", \"output\": 1}", "`output` must be a text"),
        (b"{\"question\": \"x\"}", "found the fields [\"question\"]"),
        (b"{\"completion\": \"x\"}", "`prompt` is missing"),
        (b"{\"text\": \"\xff\"}", "c.jsonl:1: not UTF-8 from byte 10"),
        (b"{\"messages\": []}", "c.jsonl:1: no turn with the role"),
        (b"\n", "no sequence with a target"),
    ] {
        let windowing = Windowing::new(64).strict(true);
        let error = read(&files, "c.jsonl", content, &windowing);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = |paths: &[&Path]| {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        read_corpus(&paths, &files, &Windowing::new(64), &mut |_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[Path::new("/nowhere/a.txt")]).contains("/nowhere/a.txt: "));
    assert!(error(&[Path::new("a.csv")]).contains("a.csv: a corpus file ends in"));
    assert!(error(&[]).contains("no file was named"));
    let dir = TempDir::new().unwrap();
    assert!(error(&[dir.path()]).contains("has no .txt"));
    let long = vec![b'x'; crate::limits::LINE_BYTES_MAX + 1];
    let error = read(&files, "c.jsonl", long, &Windowing::new(64))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("c.jsonl:1: the line is longer than"),
        "{error}"
    );
}

#[test]
fn settings_outside_their_limits_are_refused() {
    let (_dir, files) = tokenizer();
    for (seq_len, min_tokens) in [(0, 2), (7, 2), (1 << 20, 2), (16, 1), (16, 17)] {
        let windowing = Windowing {
            seq_len,
            min_tokens,
            strict: false,
            ..Windowing::new(16)
        };
        let error = read(&files, "c.txt", "hello", &windowing).unwrap_err();
        assert!(matches!(error, Error::Windowing(_)), "{error}");
    }
}

#[test]
fn a_directory_is_read_in_order_of_name() {
    let (_dir, files) = tokenizer();
    let dir = TempDir::new().unwrap();
    for (name, content) in [
        ("b.md", "second"),
        ("a.txt", "\u{feff}first"),
        ("c.jsonl", "{\"text\": \"third\"}"),
        ("x.bin", "no"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let mut last = Progress::default();
    let corpus = read_corpus(
        &[dir.path().to_owned()],
        &files,
        &Windowing::new(64),
        &mut |p| last = *p,
    )
    .unwrap();
    let texts: Vec<&str> = corpus.sequences.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(texts, ["first", "second", "third"]);
    assert_eq!((last.sequences, last.tokens), (3, corpus.tokens));
    // All but the byte-order mark, which is no text.
    assert_eq!(last.total_bytes - last.bytes, 3);
}

#[test]
fn a_long_document_in_pieces_has_the_tokens_of_the_whole() {
    let (_dir, files) = tokenizer();
    let mut text = String::new();
    for line in 0.. {
        if text.len() > crate::limits::PIECE_BYTES + 200_000 {
            break;
        }
        text += &format!("hello world {line} 世界!\n");
        if line % 7 == 0 {
            text += "\n  \t\n";
        }
    }
    let corpus = read(&files, "c.txt", &text, &Windowing::new(512)).unwrap();
    let ids: Vec<u32> = corpus
        .sequences
        .iter()
        .flat_map(|s| s.token_ids.clone())
        .collect();
    assert!(ids == files.encode(&text).unwrap().ids);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn windows_cover_a_document_exactly_once(text in "(hello|[a-z ]|世|é|😀|\n|<\\|im_end\\|>){1,120}", seq_len in 8usize..20) {
        let files = shared();
        let whole = files.encode(&text).unwrap();
        let corpus = match read(files, "c.txt", &text, &Windowing::new(seq_len)) {
            Ok(corpus) => corpus,
            Err(Error::EmptyCorpus(_)) => return Ok(()),
            Err(e) => return Err(TestCaseError::fail(e.to_string())),
        };
        let (mut ids, mut joined) = (Vec::<u32>::new(), String::new());
        for sequence in &corpus.sequences {
            check(sequence, seq_len);
            let base = joined.len() as u32;
            let first = ids.len();
            let ranges = &whole.ranges[first..first + sequence.token_ids.len()];
            let shifted: Vec<(u32, u32)> = sequence.byte_offsets.iter().map(|(s, e)| (s + base, e + base)).collect();
            prop_assert_eq!(&shifted, ranges);
            ids.extend(&sequence.token_ids);
            joined += &sequence.text;
        }
        // A last token alone has nothing before it and is left out.
        let left_out = corpus.skipped.too_short as usize;
        prop_assert_eq!(&ids, &whole.ids[..whole.ids.len() - left_out]);
        prop_assert!(text.starts_with(&joined) && (left_out > 0 || text == joined));
    }

    #[test]
    fn arbitrary_bytes_as_a_corpus_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let files = shared();
        for name in ["c.jsonl", "c.txt"] {
            let _ = read(files, name, &bytes, &Windowing::new(16));
        }
    }

    #[test]
    fn arbitrary_fields_never_panic(
        form in proptest::sample::select(vec!["text", "prompt", "completion", "messages", "tools"]),
        other in proptest::sample::select(vec!["text", "prompt", "completion", "messages", "role"]),
        values in proptest::collection::vec(proptest::sample::select(vec![
            json!("世x"), json!(""), json!(3), json!(null), json!([]), json!([{"role": "assistant", "content": "é"}]),
            json!([{"role": "assistant"}]), json!([[]]), json!({"role": "user"}), json!([{"role": "user", "content": null}]),
        ]), 2),
    ) {
        let files = shared();
        if let Ok(corpus) = jsonl(files, json!({form: values[0], other: values[1]}), 16) {
            corpus.sequences.iter().for_each(|sequence| check(sequence, 16));
        }
    }
}

#[test]
fn a_student_reads_its_own_side_of_a_pair_as_an_ordinary_record() {
    let student = json!({"prompt": "hello ", "completion": "there"});
    let pair = json!({
        "teacher": {"prompt": "say hello: ", "completion": "hello there"},
        "student": student,
        "targets": "all",
    });
    let windowing = Windowing::new(64).of_student();
    let own = |line: &serde_json::Value| {
        read(shared(), "c.jsonl", format!("{line}\n"), &windowing)
            .unwrap()
            .sequences
    };
    assert_eq!(own(&pair), own(&student));
    let teacher = read(
        shared(),
        "c.jsonl",
        format!("{pair}\n"),
        &Windowing::new(64),
    )
    .unwrap();
    assert_ne!(teacher.sequences[0].text, own(&pair)[0].text);
    assert!(teacher.sequences[0].view.is_some());
}
