//! Compares tokenizer files, chat templates and windows with what Hugging Face transformers makes of the same fixtures.

use anyhow::{Context, Result};
use distill_tests::fixtures;
use distill_text::{TokenizerFiles, Windowing, read_corpus};
use serde_json::Value;

fn expected() -> Result<Value> {
    let file = fixtures::path("tokenizer/expected.json");
    Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?)
}

fn numbers(value: &Value) -> Vec<u32> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|n| n.as_u64()).map(|n| n as u32).collect()
}

#[test]
fn strings_become_the_ids_of_transformers_with_ranges_inside_its_characters() -> Result<()> {
    let tokenizer = TokenizerFiles::open(&fixtures::path("tokenizer"))?;
    let expected = expected()?;
    assert_eq!(Some(u64::from(tokenizer.size())), expected["size"].as_u64());
    assert_eq!(
        tokenizer.eos_id().map(u64::from),
        expected["eos_id"].as_u64()
    );
    for case in expected["strings"].as_array().context("strings")? {
        let text = case["text"].as_str().context("text")?;
        let encoded = tokenizer.encode(text)?;
        assert_eq!(encoded.ids, numbers(&case["ids"]), "{text:?}");
        let theirs = case["byte_offsets"].as_array().context("byte_offsets")?;
        assert_eq!(encoded.ranges.len(), theirs.len(), "{text:?}");
        for (&(start, end), characters) in encoded.ranges.iter().zip(theirs) {
            // transformers widens a token that is part of a character to the whole character.
            let characters = numbers(characters);
            assert!(
                characters[0] <= start && start <= end && end <= characters[1],
                "{text:?}: {start}..{end} {characters:?}"
            );
        }
        let decoded = tokenizer.tokenizer().decode(&encoded.ids, false);
        assert_eq!(decoded.ok().as_deref(), case["decoded"].as_str());
    }
    Ok(())
}

#[test]
fn chats_render_as_transformers_renders_them() -> Result<()> {
    let expected = expected()?;
    for directory in ["tokenizer", "tokenizer-resaved"] {
        let tokenizer = TokenizerFiles::open(&fixtures::path(directory))?;
        for case in expected["chats"].as_array().context("chats")? {
            let prompt = case["add_generation_prompt"].as_bool().context("flag")?;
            let rendered = tokenizer.render_chat(&case["messages"], prompt)?;
            assert_eq!(
                Some(rendered.as_str()),
                case["rendered"].as_str(),
                "{directory}"
            );
            assert_eq!(
                tokenizer.encode(&rendered)?.ids,
                numbers(&case["ids"]),
                "{directory}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_upload_that_spells_the_same_tokenizer_otherwise_has_its_fingerprint() -> Result<()> {
    let one = TokenizerFiles::open(&fixtures::path("tokenizer"))?;
    let other = TokenizerFiles::open(&fixtures::path("tokenizer-resaved"))?;
    assert_eq!(one.fingerprint(), other.fingerprint());
    // Its truncation to 8 tokens and its padding must not reach the text.
    let text = "Farmers brought their grain in sacks and took it home as flour.";
    assert_eq!(one.encode(text)?, other.encode(text)?);
    Ok(())
}

#[test]
fn every_input_form_of_the_corpus_becomes_windows_with_targets() -> Result<()> {
    let tokenizer = TokenizerFiles::open(&fixtures::path("tokenizer"))?;
    let eos = tokenizer.eos_id().context("eos")?;
    for (name, seq_len, documents) in [
        ("documents.txt", 48, 1),
        ("text.jsonl", 48, 7),
        ("completions.jsonl", 160, 3),
        ("messages.jsonl", 256, 2),
    ] {
        let paths = [fixtures::path("corpus").join(name)];
        let corpus = read_corpus(&paths, &tokenizer, &Windowing::new(seq_len), &mut |_| ())?;
        assert_eq!(corpus.documents, documents, "{name}");
        for sequence in &corpus.sequences {
            assert!(
                sequence.token_ids.len() <= seq_len && !sequence.target_mask[0],
                "{name}"
            );
            assert!(sequence.targets() > 0, "{name}");
            let ends = sequence.token_ids.iter().zip(&sequence.target_mask);
            let targeted_ends = ends.filter(|&(&id, &target)| id == eos && target).count();
            // A completion is taught to end; in a conversation each assistant turn is.
            match name {
                "completions.jsonl" => assert_eq!(targeted_ends, 1),
                "messages.jsonl" => assert!(targeted_ends >= 1),
                _ => assert_eq!(targeted_ends, 0),
            }
        }
    }
    Ok(())
}
