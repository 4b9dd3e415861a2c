//! Provides what the server says at start: plain lines on standard error, or JSON objects on standard output.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use distill_model::ModelConfig;
use distill_objects::is_remote;
use distill_program::{
    console,
    units::{Bytes, Digits, Time},
};
use distill_proto::{fingerprint::short, v1::GetServerInfoResponse};
use distill_text::{Corpus, Skipped};
use serde_json::{Value, json};

use crate::{
    cache::{Cache, Sealed},
    config::Config,
    plan::{Entry, Pairs, Plan},
    production::Totals,
    sketch::Summary,
};

/// What a capture has before it.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// I and N, where every N-th shard from the I-th on is this process's alone.
    pub part: Option<[u32; 2]>,
    /// Sequences to compute.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes on disk, about.
    pub bytes: u64,
    /// Seconds, once the first batch has shown how fast it goes.
    pub seconds: Option<f64>,
    /// Bytes that can be written, where the system says.
    pub free_bytes: Option<u64>,
}

/// Says what happens, for people or for programs.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    json: bool,
}

impl Reporter {
    /// JSON lines where `json`, else plain ones.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// The address is known; clients may wait on its health service.
    pub fn listening(&self, address: &str, port: Option<u16>) {
        self.say(
            "listening",
            json!({ "address": address, "port": port }),
            &format!("listening on {address}; loading the teacher"),
        );
    }

    /// Prometheus may read now.
    pub fn metrics(&self, at: SocketAddr) {
        self.say(
            "metrics",
            json!({ "address": at.to_string() }),
            &format!("metrics at http://{at}/metrics"),
        );
    }

    /// The corpus is read.
    pub fn corpus(&self, corpus: &Corpus) {
        let skipped = &corpus.skipped;
        let entries: Vec<Entry> = corpus.sequences.iter().map(Entry::of).collect();
        let pairs = Pairs::of(&entries);
        let paired = if pairs.sequences > 0 {
            format!(
                "; {} of the sequences are pairs, {} of these share nothing",
                pairs.sequences, pairs.without_shared
            )
        } else {
            String::new()
        };
        self.say(
            "corpus",
            json!({
                "documents": corpus.documents,
                "sequences": corpus.sequences.len(),
                "tokens": corpus.tokens,
                "targets": corpus.targets,
                "truncated": skipped.truncated,
                "without_target": skipped.without_target,
                "too_short": skipped.too_short,
                "skipped": skipped.rows,
                "skipped_rows": skipped.named,
                "pairs": pairs,
                "fingerprint": corpus.fingerprint.to_hex(),
            }),
            &format!(
                "{}corpus: {} documents, {} sequences, {} tokens, {} targets ({} truncated, {} without target, {} too short), fingerprint {}{paired}",
                name_skipped(skipped),
                corpus.documents,
                corpus.sequences.len(),
                corpus.tokens,
                corpus.targets,
                skipped.truncated,
                skipped.without_target,
                skipped.too_short,
                short(&corpus.fingerprint.to_hex()),
            ),
        );
    }

    /// The checkpoint is open, in blocks of these types where it is a GGUF file; hashing and reading it takes a while.
    pub fn weights(&self, parameters: u64, quantisation: Option<&str>) {
        let blocks = quantisation.map(|types| format!(" in {types}"));
        self.say(
            "weights",
            json!({ "parameters": parameters, "quantisation": quantisation }),
            &format!(
                "weights: {} M parameters{}; reading them",
                Digits(parameters as f64 / 1e6),
                blocks.unwrap_or_default(),
            ),
        );
    }

    /// The sketch is made.
    pub fn sketch(&self, sketch: &Summary) {
        let Summary {
            rank,
            rows,
            held_out_rows,
            shared,
            error,
        } = *sketch;
        let judged = if shared {
            "the same rows, as the corpus is too small to hold any out: the error on new text is larger".to_owned()
        } else {
            format!("{held_out_rows} held-out rows")
        };
        self.say(
            "sketch",
            json!({
                "rank": rank,
                "rows": rows,
                "held_out_rows": held_out_rows,
                "shared": shared,
                "state_error": error,
            }),
            &format!(
                "sketch: {rank} directions of {rows} rows lose {:.1} % of the centred logits (mean relative error on {judged})",
                100.0 * error
            ),
        );
    }

    /// The weights are in, and take so many bytes.
    pub fn model(
        &self,
        config: &Config,
        model: &ModelConfig,
        info: &GetServerInfoResponse,
        weight_bytes: u64,
    ) {
        let vocabulary = if info.effective_vocab_size == info.head_rows {
            format!("vocabulary {}", info.head_rows)
        } else {
            format!(
                "head of {} rows cut to the {} ids that the tokenizer knows",
                info.head_rows, info.effective_vocab_size
            )
        };
        self.say(
            "model",
            json!({
                "name": info.model_name,
                "architecture": model.model_type.name(),
                "dtype": config.dtype,
                "weight_bytes": weight_bytes,
                "hidden_size": model.hidden_size,
                "num_hidden_layers": model.num_hidden_layers,
                "head_rows": info.head_rows,
                "effective_vocab_size": info.effective_vocab_size,
                "model_fingerprint": info.model_fingerprint,
                "tokenizer_fingerprint": info.tokenizer_fingerprint,
                "plan_fingerprint": info.plan_fingerprint,
            }),
            &format!(
                "model: {} ({}, {} layers, hidden size {}, {}), {} of weights; {vocabulary}\nplan: {} K={}, temperatures {:?}, values {}, state {}\nfingerprints: model {}, tokenizer {}, plan {}",
                info.model_name,
                model.model_type.name(),
                model.num_hidden_layers,
                model.hidden_size,
                config.dtype,
                Bytes(weight_bytes),
                config.estimator,
                info.top_k,
                info.temperatures,
                config.value_coding,
                config.state,
                short(&info.model_fingerprint),
                short(&info.tokenizer_fingerprint),
                short(&info.plan_fingerprint),
            ),
        );
    }

    /// Which sequences of the corpus a cache knows; `taken` of the new ones need no teacher, `gone` are in the cache only.
    pub fn cache_corpus(&self, known: usize, (new, taken): (usize, usize), gone: usize) {
        let mut line = format!("cache: {known} sequences known, {new} of the corpus are new");
        if taken > 0 {
            line += &format!(
                "; the teacher reads the same in {taken} of these as in others that are there, so they take their rows"
            );
        }
        if gone > 0 {
            line += &format!(
                "; {gone} are not in this corpus: they stay in the cache and are not served"
            );
        }
        self.say(
            "cache_corpus",
            json!({ "known": known, "new": new, "taken": taken, "gone": gone }),
            &line,
        );
    }

    /// Sequences that took the rows of others; nothing where none did.
    pub fn rows_taken(&self, sequences: u64) {
        if sequences > 0 {
            self.say(
                "rows_taken",
                json!({ "sequences": sequences }),
                &format!("cache: {sequences} sequences took their rows from frames that are there"),
            );
        }
    }

    /// What there is of a cache.
    pub fn cache(&self, cache: &Cache, sealed: Sealed) {
        let count = cache.count();
        let done = sealed.frames + sealed.partial_frames;
        self.say(
            "cache",
            json!({
                "path": cache.path(),
                "sequences": count,
                "served": cache.served().count(count),
                "done": done,
                "sealed_shards": sealed.shards,
                "bytes": sealed.bytes + sealed.partial_bytes,
                "plan_fingerprint": cache.plan().to_hex(),
            }),
            &format!(
                "cache {}: {done} of {count} sequences, {} sealed shards, {}",
                cache.path().display(),
                sealed.shards,
                Bytes(sealed.bytes + sealed.partial_bytes)
            ),
        );
    }

    /// Blocks can be had.
    pub fn serving(&self, address: &str) {
        self.say(
            "serving",
            json!({ "address": address }),
            &format!("serving on {address}"),
        );
    }

    /// Somebody got the device, is asked for it, or has left it: `loading`, `loaded` and `leaving` are about the teacher,
    /// `granted` and `yielding` about a trainer.
    pub fn device(&self, state: &str, holder: Option<&str>, epoch: u64) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_seconds = since_1970.map_or(0.0, |time| time.as_secs_f64());
        let told = match (state, holder) {
            ("loading", _) => "the teacher takes it and loads".to_owned(),
            ("loaded", _) => "the teacher is in and computes".to_owned(),
            ("leaving", _) => "the teacher leaves".to_owned(),
            ("granted", Some(holder)) => format!("granted to {holder}"),
            ("yielding", Some(holder)) => format!("{holder} is asked to yield"),
            _ => "free".to_owned(),
        };
        self.say(
            "device",
            json!({ "state": state, "holder": holder, "epoch": epoch, "unix_seconds": unix_seconds }),
            &format!("device: {told} (epoch {epoch})"),
        );
    }

    /// The server was told to stop.
    pub fn stopping(&self) {
        self.say(
            "stopping",
            json!({}),
            "finishing the batch under way; interrupt again to exit at once",
        );
    }

    /// What the teacher did for its plan; nothing where it did nothing.
    pub fn totals(&self, totals: Totals) {
        if totals.tokens == 0 {
            return;
        }
        let (rate, size) = (totals.tokens_per_second(), totals.bytes_per_token());
        self.say(
            "computed",
            json!({
                "tokens": totals.tokens,
                "bytes": totals.bytes,
                "compute_seconds": totals.compute_seconds,
                "tokens_per_second": rate,
                "bytes_per_token": size,
            }),
            &format!(
                "computed {} tokens at {} tokens/s; {} bytes a token",
                totals.tokens,
                Digits(rate),
                Digits(size)
            ),
        );
    }

    /// What a capture has before it.
    pub fn work(&self, work: Work) {
        let Work {
            part,
            sequences,
            tokens,
            bytes,
            free_bytes,
            ..
        } = work;
        let part = part.map(|[index, of]| format!("{index}/{of}"));
        let whose = part.as_ref().map(|part| format!(" of part {part}"));
        let mut line = format!(
            "to compute{}: {sequences} sequences, {tokens} tokens, about {} on disk",
            whose.unwrap_or_default(),
            Bytes(bytes)
        );
        if let Some(free) = free_bytes {
            line += &format!(" ({} free)", Bytes(free));
            if free < bytes {
                line += "; it will not fit: make room, or name another place";
            }
        }
        self.say(
            "work",
            json!({ "part": part, "sequences": sequences, "tokens": tokens, "bytes": bytes, "free_bytes": free_bytes }),
            &line,
        );
    }

    /// How long it takes, by its first batch.
    pub fn work_time(&self, work: Work) {
        let seconds = work.seconds.unwrap_or_default();
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        self.say(
            "work_time",
            json!({ "seconds": seconds }),
            &format!("about {} by the first batch", Time(time)),
        );
    }

    /// The part of this process is in the cache.
    pub fn captured(&self, path: &Path, plan: &Plan, complete: bool) {
        let rest = match (complete, is_remote(path)) {
            (true, _) => "complete",
            (false, true) => "this part is done; the others go to the same address",
            (false, false) => "this part is done; `teacher-server merge` puts the parts together",
        };
        self.say(
            "captured",
            json!({ "path": path, "sequences": plan.served_count(), "complete": complete }),
            &format!("cache {}: {rest}", path.display()),
        );
    }

    /// The capture was stopped.
    pub fn interrupted(&self, path: &Path) {
        self.say(
            "interrupted",
            json!({ "path": path, "complete": false }),
            &format!(
                "cache {}: stopped; run the same command to go on",
                path.display()
            ),
        );
    }

    fn say(&self, event: &str, fields: Value, line: &str) {
        if !self.json {
            console::say(format_args!(
                "teacher: {}",
                line.replace('\n', "\nteacher: ")
            ));
            return;
        }
        let mut object = serde_json::Map::from_iter([("event".to_owned(), json!(event))]);
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        console::report(Value::Object(object));
    }
}

/// The rows that were skipped, on lines of their own.
fn name_skipped(skipped: &Skipped) -> String {
    if skipped.rows > 0 {
        format!("{skipped}\n")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_rows_are_named_on_lines_of_their_own() {
        assert_eq!(name_skipped(&Skipped::default()), "");
        let skipped = Skipped {
            rows: 3,
            named: vec!["a.jsonl:1: not JSON".into(), "b.parquet: row 2: no".into()],
            ..Skipped::default()
        };
        let lines = name_skipped(&skipped);
        let lines: Vec<&str> = lines.lines().collect();
        assert!(lines[0].starts_with("3 rows skipped"), "{lines:?}");
        assert_eq!(
            lines[1..],
            [
                "  a.jsonl:1: not JSON",
                "  b.parquet: row 2: no",
                "  and 1 more"
            ]
        );
    }
}
