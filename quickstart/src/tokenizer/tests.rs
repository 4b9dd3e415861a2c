//! Provides the tests of the tokenizer: it is small, loses nothing, and is read by the crate that both processes use.

use std::{collections::HashSet, fs, sync::LazyLock};

use distill_text::{TokenizerFiles, Windowing, read_corpus};
use tokenizers::Tokenizer;

use super::{EOS_TOKEN, VOCAB_SIZE_DEFAULT, train, write};
use crate::corpus::{Problem, Sizes, Split, generate, write_corpus};

/// Longest problem with its solution and the end of text, in tokens.
const TOKENS_MAX: usize = 160;

fn problems(split: Split) -> Vec<Problem> {
    generate(split, 3000, 5).expect("problems")
}

static TRAINED: LazyLock<Tokenizer> = LazyLock::new(trained);

fn trained() -> Tokenizer {
    train(&problems(Split::Train), VOCAB_SIZE_DEFAULT).expect("a tokenizer")
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let encoding = tokenizer.encode(text, false).expect("an encoding");
    encoding.get_ids().to_vec()
}

#[test]
fn problems_are_short_round_trip_and_split_at_the_completion() {
    let tokenizer = &*TRAINED;
    let mut total = 0;
    for problem in Split::ALL.into_iter().flat_map(problems) {
        let text = format!("{}{}", problem.prompt, problem.completion);
        let whole = ids(tokenizer, &text);
        assert_eq!(tokenizer.decode(&whole, false).expect("a text"), text);
        let parts = [problem.prompt, problem.completion].map(|part| ids(tokenizer, &part));
        assert_eq!(whole, parts.concat(), "{text}");
        assert!(whole.len() < TOKENS_MAX, "{} tokens: {text}", whole.len());
        total += whole.len();
    }
    assert!(total < 9000 * 90, "{total} tokens in 9000 problems");
}

#[test]
fn digits_and_chinese_characters_are_single_tokens() {
    let tokenizer = &*TRAINED;
    for token in tokenizer.get_vocab(false).into_keys() {
        let Some(id) = tokenizer.token_to_id(&token) else {
            panic!("{token} has no id");
        };
        let text = tokenizer.decode(&[id], false).expect("a text");
        let single = |c: char| c.is_ascii_digit() || ('\u{4e00}'..='\u{9fff}').contains(&c);
        assert!(
            !text.contains(single) || text.chars().count() == 1,
            "{text}"
        );
    }
    assert_eq!(ids(tokenizer, "比小明").len(), 3);
    assert_eq!(ids(tokenizer, "128").len(), 3);
}

#[test]
fn held_out_templates_use_tokens_of_the_training_problems() {
    let tokenizer = &*TRAINED;
    let tokens = |split| -> HashSet<u32> {
        let texts = problems(split)
            .into_iter()
            .map(|p| p.prompt + &p.completion);
        texts.flat_map(|text| ids(tokenizer, &text)).collect()
    };
    let unseen = &tokens(Split::HeldoutTemplates) - &tokens(Split::Train);
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn any_text_round_trips() {
    let tokenizer = &*TRAINED;
    for text in [
        "",
        "naïve 1.5%\r\n\tß",
        "日本語と한국어",
        "🦀 <|im_end|>",
        "a\0b",
    ] {
        let decoded = tokenizer
            .decode(&ids(tokenizer, text), false)
            .expect("a text");
        assert_eq!(decoded, text);
    }
}

#[test]
fn training_twice_writes_the_same_files() {
    let files = || {
        let dir = tempfile::tempdir().expect("a directory");
        write(&trained(), dir.path()).expect("files");
        [
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ]
        .map(|name| fs::read_to_string(dir.path().join(name)).expect(name))
    };
    let [tokenizer, config, generation] = files();
    assert_eq!([&tokenizer, &config, &generation], files().each_ref());
    let tokenizer: Tokenizer = tokenizer.parse().expect("a tokenizer");
    let generation: serde_json::Value = serde_json::from_str(&generation).expect("JSON");
    let eos_id = tokenizer.token_to_id(EOS_TOKEN).map(u64::from);
    assert_eq!(generation["eos_token_id"].as_u64(), eos_id);
    assert_eq!(ids(&tokenizer, "3+4=7"), ids(&TRAINED, "3+4=7"));
}

#[test]
fn a_vocabulary_without_room_for_bytes_is_refused() {
    let error = train(&[], 100).expect_err("refused");
    assert!(error.to_string().contains("257"), "{error}");
}

/// What the server and the trainer read is what was written.
#[test]
fn the_text_crate_reads_problems_and_tokenizer() {
    let dir = tempfile::tempdir().expect("a directory");
    write(&TRAINED, dir.path()).expect("files");
    let tokenizer = TokenizerFiles::open(dir.path()).expect("a tokenizer");
    let sizes = Sizes {
        train: 50,
        held_out: 20,
        steps_max: usize::MAX,
    };
    let paths = write_corpus(dir.path(), sizes, 5).expect("a corpus");
    let corpus = read_corpus(&paths, &tokenizer, &Windowing::new(TOKENS_MAX), &mut |_| ())
        .expect("sequences");
    assert_eq!(corpus.documents, 90);
    assert_eq!(corpus.skipped, Default::default());
    let problems = generate(Split::Train, 50, 5).expect("problems");
    for (sequence, problem) in corpus.sequences.iter().zip(problems) {
        let mut completion = ids(&TRAINED, &problem.completion);
        completion.push(tokenizer.eos_id().expect("an end of text"));
        let targets = sequence.token_ids.iter().zip(&sequence.target_mask);
        let targets = targets.filter_map(|(&id, &target)| target.then_some(id));
        assert_eq!(targets.collect::<Vec<_>>(), completion);
    }
}
