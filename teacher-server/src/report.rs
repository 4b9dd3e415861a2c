//! Provides what the server says at start: plain lines on standard error, or JSON objects on standard output.

use std::io::Write;

use distill_model::ModelConfig;
use distill_proto::v1::GetServerInfoResponse;
use distill_text::Corpus;
use serde_json::{Value, json};

use crate::{config::Config, production::Totals, sketch::Summary};

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

    /// The corpus is read.
    pub fn corpus(&self, corpus: &Corpus) {
        let skipped = &corpus.skipped;
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
                "fingerprint": corpus.fingerprint.to_hex(),
            }),
            &format!(
                "corpus: {} documents, {} sequences, {} tokens, {} targets ({} truncated, {} without target, {} too short), fingerprint {}",
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

    /// The checkpoint is open; hashing and reading it takes a while.
    pub fn weights(&self, parameters: u64) {
        self.say(
            "weights",
            json!({ "parameters": parameters }),
            &format!(
                "weights: {:.1} M parameters; reading them",
                parameters as f64 / 1e6
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
        let judged = match shared {
            true => "the same rows, as the corpus is too small to hold any out: the error on new text is larger".to_owned(),
            false => format!("{held_out_rows} held-out rows"),
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

    /// The weights are in.
    pub fn model(&self, config: &Config, model: &ModelConfig, info: &GetServerInfoResponse) {
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
                "hidden_size": model.hidden_size,
                "num_hidden_layers": model.num_hidden_layers,
                "head_rows": info.head_rows,
                "effective_vocab_size": info.effective_vocab_size,
                "model_fingerprint": info.model_fingerprint,
                "tokenizer_fingerprint": info.tokenizer_fingerprint,
                "plan_fingerprint": info.plan_fingerprint,
            }),
            &format!(
                "model: {} ({}, {} layers, hidden size {}, {}); {vocabulary}\nplan: {} K={}, temperatures {:?}, values {}, state {}\nfingerprints: model {}, tokenizer {}, plan {}",
                info.model_name,
                model.model_type.name(),
                model.num_hidden_layers,
                model.hidden_size,
                config.dtype,
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

    /// Blocks can be had.
    pub fn serving(&self, address: &str) {
        self.say(
            "serving",
            json!({ "address": address }),
            &format!("serving on {address}"),
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
                "computed {} tokens at {rate:.0} tokens/s; {size:.0} bytes a token",
                totals.tokens
            ),
        );
    }

    fn say(&self, event: &str, fields: Value, line: &str) {
        if !self.json {
            eprintln!("teacher: {}", line.replace('\n', "\nteacher: "));
            return;
        }
        let mut object = serde_json::Map::from_iter([("event".to_owned(), json!(event))]);
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        let mut out = std::io::stdout().lock();
        let written = writeln!(out, "{}", Value::Object(object)).and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::warn!("standard output: {error}");
        }
    }
}

/// Enough of a fingerprint to tell two apart by eye.
fn short(hex: &str) -> &str {
    hex.get(..16).unwrap_or(hex)
}
