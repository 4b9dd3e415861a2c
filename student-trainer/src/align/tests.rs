use std::{fs, path::Path, sync::LazyLock};

use distill_proto::{Estimator, Fingerprint, Rows, ValueCoding};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A byte-level tokenizer with these merges, each two known tokens, and these special tokens, the first the end-of-text.
pub(crate) fn write_byte_level(dir: &Path, merges: &[(&str, &str)], special: &[&str]) {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let alphabet = (0..256u32).map(|byte| {
        if printable(byte) {
            byte
        } else {
            others.next().unwrap()
        }
    });
    let tokens = alphabet.map(|code| char::from_u32(code).unwrap().to_string());
    let tokens = tokens.chain(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: serde_json::Map<String, Value> = tokens
        .zip(0u32..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let first = vocab.len();
    let added = special.iter().enumerate().map(|(i, content)| {
        json!({"id": first + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
        }
    });
    fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    let config = json!({"eos_token": special[0]});
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

fn byte_level(merges: &[(&str, &str)], special: &[&str]) -> TokenizerFiles {
    let dir = tempfile::tempdir().unwrap();
    write_byte_level(dir.path(), merges, special);
    TokenizerFiles::open(dir.path()).unwrap()
}

/// Cuts words in other places than the fixture, and writes its end-of-text in another way.
pub(super) static STUDENT: LazyLock<TokenizerFiles> = LazyLock::new(|| {
    let merges = [
        ("e", "l"),
        ("Ġ", "h"),
        ("o", "Ġ"),
        ("Ġh", "el"),
        ("l", "o"),
        ("t", "h"),
        ("ä", "½"),
    ];
    byte_level(&merges, &["<eot>", "<|im_start|>"])
});

pub(super) static TEACHER: LazyLock<TokenizerFiles> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizer");
    TokenizerFiles::open(&fixtures).unwrap()
});

fn aligner(positions_max: usize) -> Aligner<'static> {
    Aligner::new(&TEACHER.vocabulary(), &STUDENT, positions_max)
}

/// A frame of the fixture's tokenizer: targets are the tokens with a byte in `span`, each row knows its label and two
/// bytes, and `end` adds an end-of-text without bytes.
pub(super) fn frame(text: &str, span: Range<usize>, end: bool) -> Frame {
    let mut encoded = TEACHER.encode(text).unwrap();
    let target = |(t, &(a, b)): (usize, &(u32, u32))| {
        t > 0 && (a as usize) < span.end && (b as usize) > span.start
    };
    let mut mask: Vec<bool> = encoded.ranges.iter().enumerate().map(target).collect();
    if end {
        encoded.ids.extend(TEACHER.eos_id());
        encoded.ranges.push((text.len() as u32, text.len() as u32));
        mask.push(true);
    }
    let labels = encoded.ids.iter().zip(&mask).filter(|(_, target)| **target);
    let labels: Vec<u32> = labels.map(|(id, _)| *id).collect();
    Frame {
        sequence_id: 1,
        index: 0,
        text_digest: Fingerprint::of(text.as_bytes()),
        text: text.to_owned(),
        token_ids: encoded.ids,
        byte_offsets: encoded.ranges,
        target_mask: mask,
        rows: rows(&labels),
        view: None,
    }
}

fn rows(labels: &[u32]) -> Rows {
    let row = |label: &u32| {
        let mut ids = vec![*label, 65, 66, 67];
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(3);
        if !ids.contains(label) {
            ids[2] = *label;
        }
        ids
    };
    let m = labels.len();
    Rows {
        rows: m,
        k: 3,
        vocab_size: TEACHER.size(),
        estimator: Estimator::TopK,
        coding: ValueCoding::Step(0.125),
        ids: labels.iter().flat_map(row).collect(),
        logits: (0..m).flat_map(|_| [2.0, 1.0, 0.0]).collect(),
        counts: vec![],
        max: vec![2.0; m],
        mean: vec![0.0; m],
        std: vec![1.0; m],
        temperatures: vec![1.0, 2.0],
        logsumexp: vec![(0..m).map(|j| j as f32).collect(), vec![9.0; m]],
        state: None,
    }
}

#[test]
fn ids_map_to_the_same_bytes_and_the_ends_of_text_to_each_other() {
    let (teacher, student) = (TEACHER.vocabulary(), STUDENT.vocabulary());
    let map = VocabularyMap::new(&teacher, &STUDENT);
    let mut mapped = 0;
    for (id, token) in teacher.iter() {
        let same = |other: &&distill_text::Token| **other == *token;
        let counterpart = map.student_id(id);
        mapped += usize::from(counterpart.is_some());
        match counterpart {
            Some(other) if Some(id) == teacher.eos_id => assert_eq!(Some(other), student.eos_id),
            Some(other) => assert_eq!(student.get(other), Some(token)),
            None => assert!(student.iter().map(|(_, token)| token).find(same).is_none()),
        }
    }
    assert_eq!(map.counts(), (teacher.iter().count(), mapped));
    // All bytes, some of the merges, <|im_start|>, and the end-of-text by its role; <|endoftext|> has none.
    assert!(mapped > 258 && map.eos_by_role(), "{map}");
    assert_eq!(map.student_id(380), None);
    assert_eq!(map.student_id(9999), None);
}

#[test]
fn of_tokens_with_the_same_bytes_the_one_that_is_written_counts() {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true});
    let tokens = ["<unk>", "<0x41>", "A", "▁", "B", "<0x42>"];
    let vocab: Vec<Value> = tokens.iter().map(|token| json!([token, -1.0])).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": metaspace, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": vocab},
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let student = TokenizerFiles::open(dir.path()).unwrap();
    let map = VocabularyMap::new(&student.vocabulary(), &student);
    // As a teacher it has both, and both mean the same.
    let found: Vec<_> = (1..6).map(|id| map.student_id(id).unwrap()).collect();
    assert_eq!(found, [2, 2, 3, 4, 4]);
}

#[test]
fn a_completion_keeps_its_border_and_ends_with_the_students_end_of_text() {
    let text = "say hello: hello hello";
    let example = aligner(99)
        .example(&frame(text, 10..text.len(), true))
        .unwrap()
        .unwrap();
    let expected = STUDENT.encode(text).unwrap();
    let count = expected.ids.len();
    assert_eq!(example.token_ids[..count], expected.ids);
    assert_eq!(example.token_ids[count..], [STUDENT.eos_id().unwrap()]);
    let inside = (0..count).filter(|&t| expected.ranges[t].1 > 10);
    assert_eq!(
        example.target_positions,
        inside.chain([count]).collect::<Vec<_>>()
    );
    assert_eq!(example.labels().last().copied(), STUDENT.eos_id());
    let alignment = example.targets.alignment.as_ref().unwrap();
    let m = example.targets.rows();
    assert_eq!(alignment.pairs.last().copied(), Some(Some(m - 1)));
    assert_eq!(alignment.pairs[0], Some(0));
    let places = [&alignment.student_places, &alignment.teacher_places];
    assert_eq!(places.map(|places| *places.last().unwrap()), [1.0, 1.0]);
    assert_eq!(places[0][0], 10.0 / text.len() as f64);
    // The teacher's end-of-text is an entry of its last row, under the student's id.
    let last = example.targets.starts[m - 1]..;
    assert!(example.targets.ids[last].contains(&STUDENT.eos_id().unwrap()));
    let masked = frame(text, 10..10, true);
    let only_end = aligner(99).example(&masked).unwrap().unwrap();
    assert_eq!(only_end.target_positions, [count]);
}

#[test]
fn an_end_of_text_inside_a_chat_is_not_spelled_out() {
    let text = "<|im_start|>hello<|im_end|>\n<|im_start|>o<|im_end|>";
    let example = aligner(99)
        .example(&frame(text, 0..text.len(), false))
        .unwrap()
        .unwrap();
    let eos = STUDENT.eos_id().unwrap();
    let ends = example.token_ids.iter().filter(|id| **id == eos).count();
    let starts = example
        .token_ids
        .iter()
        .filter(|id| **id == eos + 1)
        .count();
    assert_eq!((starts, ends), (2, 2));
    let spelled = STUDENT.encode(text).unwrap().ids.len();
    assert!(example.token_ids.len() < spelled);
}

#[test]
fn what_is_beyond_the_students_positions_is_cut_on_both_sides() {
    let text = "hello hello hello hello";
    let whole = frame(text, 0..text.len(), true);
    let all = aligner(99).example(&whole).unwrap().unwrap();
    let ranges = STUDENT.encode(text).unwrap().ranges;
    for limit in 2..all.token_ids.len() {
        let cut = aligner(limit).example(&whole).unwrap().unwrap();
        assert_eq!(cut.token_ids, all.token_ids[..limit]);
        let byte = ranges
            .get(limit)
            .map_or(text.len(), |range| range.0 as usize);
        let places = &cut.targets.alignment.as_ref().unwrap().teacher_places;
        assert_eq!(places.len(), cut.targets.rows());
        assert!(
            places
                .iter()
                .all(|place| place * (text.len() as f64) < byte as f64)
        );
        // Logsumexp numbers the rows: the first ones are left.
        let first: Vec<f32> = (0..cut.targets.rows()).map(|j| j as f32).collect();
        assert_eq!(cut.targets.logsumexp[0], first);
    }
    assert!(aligner(1).example(&whole).unwrap().is_none());
}

#[test]
fn a_frame_without_a_target_or_a_known_token_gives_nothing() {
    let aligner = aligner(99);
    assert!(
        aligner
            .example(&frame("hello", 0..0, false))
            .unwrap()
            .is_none()
    );
    let mut unknown = frame("hello hello", 0..11, false);
    // <|endoftext|> has no counterpart.
    unknown.rows = Rows {
        k: 1,
        ids: vec![380; unknown.rows.rows],
        logits: vec![0.0; unknown.rows.rows],
        ..unknown.rows
    };
    assert!(aligner.example(&unknown).unwrap().is_none());
}

#[test]
fn ranges_that_make_no_sense_are_no_panic() {
    let text = "世<|im_end|>界 hello";
    let good = frame(text, 0..text.len(), true);
    let eos = TEACHER.eos_id().unwrap();
    for bytes in [(1, 2), (0, 99), (4, 3), (7, 7), (u32::MAX, u32::MAX)] {
        let mut bad = good.clone();
        bad.byte_offsets
            .iter_mut()
            .skip(1)
            .step_by(2)
            .for_each(|range| *range = bytes);
        bad.token_ids.fill(eos);
        let _ = aligner(99).example(&bad);
    }
}

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("hello".to_owned()),
        Just(" hello".to_owned()),
        Just("the o ".to_owned()),
        Just("你好世界".to_owned()),
        Just("😀👍🏽".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("<|im_start|>".to_owned()),
        Just("\n\n  x".to_owned()),
        "[a-z ]{1,6}",
        "\\PC{1,3}",
    ];
    proptest::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pairs_are_in_order_and_begin_at_the_same_byte(
        text in pieces(), from in 0.0f64..1.0, end in any::<bool>(), limit in 2usize..60,
    ) {
        let from = (from * text.len() as f64) as usize;
        let frame = frame(&text, from..text.len(), end);
        let Some(example) = aligner(limit).example(&frame).unwrap() else { return Ok(()) };
        let targets = &example.targets;
        let (n, m) = (example.target_positions.len(), targets.rows());
        let alignment = targets.alignment.as_ref().unwrap();
        prop_assert_eq!((alignment.pairs.len(), alignment.student_places.len()), (n, n));
        prop_assert_eq!((alignment.teacher_places.len(), targets.mean.len(), targets.std.len()), (m, m, m));
        prop_assert!(example.token_ids.len() <= limit && targets.logsumexp.iter().all(|row| row.len() == m));
        prop_assert!(example.target_positions.windows(2).all(|t| t[0] < t[1]) && example.target_positions[0] > 0);
        let mut next = 0;
        for (i, pair) in alignment.pairs.iter().enumerate() {
            if let Some(j) = *pair {
                prop_assert!(j >= next && j < m);
                next = j + 1;
                prop_assert_eq!(alignment.student_places[i], alignment.teacher_places[j]);
            }
        }
        for places in [&alignment.student_places, &alignment.teacher_places] {
            prop_assert!(places.iter().all(|place| (0.0..=1.0).contains(place)));
            prop_assert!(places.windows(2).all(|pair| pair[0] <= pair[1]));
        }
        for bounds in targets.starts.windows(2) {
            let ids = &targets.ids[bounds[0]..bounds[1]];
            prop_assert!(!ids.is_empty() && ids.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(ids.iter().all(|id| *id < STUDENT.size()));
        }
    }

    #[test]
    fn a_student_with_the_teachers_tokenizer_pairs_every_target(text in pieces(), end in any::<bool>()) {
        let frame = frame(&text, 0..text.len(), end);
        let aligner = Aligner::new(&TEACHER.vocabulary(), &TEACHER, 999);
        let Some(example) = aligner.example(&frame).unwrap() else { return Ok(()) };
        let direct = Example::from_frame(&frame);
        prop_assert_eq!(&example.token_ids, &direct.token_ids);
        prop_assert_eq!(&example.target_positions, &direct.target_positions);
        let pairs = &example.targets.alignment.as_ref().unwrap().pairs;
        // NFC gives the tokens of one composed character its range: only the first of them begins there.
        let composed = frame.byte_offsets.windows(2).any(|pair| pair[0].1 != pair[1].0);
        prop_assert!(composed || pairs.iter().enumerate().all(|(i, pair)| *pair == Some(i)));
        prop_assert_eq!(&example.targets.ids, &direct.targets.ids);
        prop_assert_eq!(&example.targets.logits, &direct.targets.logits);
    }
}
