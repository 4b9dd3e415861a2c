use std::{
    fs,
    path::{Path, PathBuf},
};

use super::super::{Corpus, Progress, Windowing, read_corpus};
use crate::{
    Result, TokenizerFiles,
    testing::{shared, tokenizer_json, tokenizer_with},
};

const FORMS: [&str; 7] = [
    "text",
    "completion",
    "messages",
    "conversations",
    "instruction",
    "conversational",
    "mixed",
];

/// ChatML that also writes what a message calls and what else a row has, so that nested structs and other columns count.
const WITH_CALLS: &str = "{%- if tools is not none %}{{- tools | tojson }}{%- endif %}{{- enable_thinking | default('') }}\
    {%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}\
    {%- if message.tool_calls is defined %}{{- message.tool_calls | tojson }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

fn fixture(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/corpus/parquet");
    directory.join(name)
}

fn read(
    path: &Path,
    files: &TokenizerFiles,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Corpus> {
    read_corpus(&[path.to_owned()], files, &Windowing::new(64), progress)
}

/// Reads `bytes` as a Parquet file.
fn read_bytes(bytes: &[u8]) -> std::result::Result<u64, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.parquet");
    fs::write(&path, bytes).unwrap();
    let corpus = read(&path, shared(), &mut |_| ());
    corpus
        .map(|corpus| corpus.documents)
        .map_err(|e| e.to_string())
}

#[test]
fn the_same_documents_give_the_same_sequences_from_lines_and_from_rows() {
    let (_directory, files) = tokenizer_with(&tokenizer_json(), WITH_CALLS);
    for form in FORMS {
        let lines = read(&fixture(&format!("{form}.jsonl")), &files, &mut |_| ()).unwrap();
        let mut last = Progress::default();
        let rows = read(&fixture(&format!("{form}.parquet")), &files, &mut |p| {
            assert!(p.bytes >= last.bytes, "progress goes forward");
            last = *p;
        });
        let rows = rows.unwrap();
        assert_eq!(rows.fingerprint, lines.fingerprint, "{form}");
        assert_eq!(rows.sequences, lines.sequences, "{form}");
        assert_eq!((rows.documents, lines.documents), (20, 20));
        assert_eq!(
            (last.bytes, last.sequences),
            (last.total_bytes, rows.sequences.len() as u64)
        );
    }
}

/// What tells a row's form is which of its columns are not null, and `tools` may be a column of JSON texts.
#[test]
fn a_file_may_hold_rows_of_several_forms() {
    let (_directory, files) = tokenizer_with(&tokenizer_json(), WITH_CALLS);
    let windowing = Windowing::new(512);
    let corpus = read_corpus(&[fixture("mixed.parquet")], &files, &windowing, &mut |_| ()).unwrap();
    assert_eq!((corpus.documents, corpus.sequences.len()), (20, 20));
    let texts: Vec<&str> = corpus.sequences.iter().map(|s| s.text.as_str()).collect();
    assert!(texts[0].starts_with("True<|im_start|>user"), "{}", texts[0]);
    assert!(texts[1].starts_with("<|im_start|>user"), "{}", texts[1]);
    assert!(!texts[2].contains("<|im_start|>"), "{}", texts[2]);
    assert!(
        texts[3].starts_with("False<|im_start|>"),
        "tools \"[]\": {}",
        texts[3]
    );
    assert!(
        texts[6].starts_with("[{\"name\": \"f\"}]True<|im_start|>"),
        "{}",
        texts[6]
    );
}

#[test]
fn a_directory_may_hold_shards_of_parquet() {
    let directory = tempfile::tempdir().unwrap();
    for (from, to) in [("text", "train-1"), ("completion", "train-0")] {
        let to = directory.path().join(format!("{to}.parquet"));
        fs::copy(fixture(&format!("{from}.parquet")), to).unwrap();
    }
    let corpus = read(directory.path(), shared(), &mut |_| ()).unwrap();
    let first = read(&fixture("completion.parquet"), shared(), &mut |_| ()).unwrap();
    assert_eq!(corpus.documents, 40);
    assert_eq!(corpus.sequences[0], first.sequences[0]);
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    for form in FORMS {
        let bytes = fs::read(fixture(&format!("{form}.parquet"))).unwrap();
        for length in (0..bytes.len()).rev().step_by(5) {
            let error = read_bytes(&bytes[..length]).unwrap_err();
            assert!(error.contains("c.parquet: "), "{error}");
        }
    }
}

/// A file whose end is intact, as after a bad copy: pages or metadata are wrong, and reading must end in an error or in
/// other text, never in a panic.
#[test]
fn a_damaged_file_never_brings_the_reader_down() {
    for form in FORMS {
        let name = format!("{form}.parquet");
        let whole = fs::read(fixture(&name)).unwrap();
        let (mut refused, mut tried) = (0, 0);
        for at in (0..whole.len()).step_by(4) {
            let mut bytes = whole.clone();
            // All bits, one bit, the sign: lengths, levels and types that are absurd in different ways.
            bytes[at] ^= [0xff, 0x01, 0x80][tried % 3];
            tried += 1;
            refused += usize::from(read_bytes(&bytes).is_err());
        }
        assert!(refused > tried / 20, "{name}: {refused} of {tried} noticed");
        for at in (4..whole.len() - 8).step_by(17) {
            let bytes = [&whole[..at], &whole[whole.len().min(at + 7)..]].concat();
            // What matters is that it returns.
            let _ = read_bytes(&bytes);
        }
    }
}

#[test]
fn absurd_files_are_refused_by_name() {
    let huge = [
        b"PAR1".as_slice(),
        &[0; 32],
        &u32::MAX.to_le_bytes(),
        b"PAR1",
    ]
    .concat();
    for (bytes, expected) in [
        (b"".as_slice(), "no Parquet file"),
        (
            b"PAR1 but then something else, PARE",
            "does not end as a Parquet file",
        ),
        (&huge, "4294967295 bytes of metadata"),
    ] {
        let error = read_bytes(bytes).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
