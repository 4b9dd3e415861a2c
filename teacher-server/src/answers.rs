/*! Provides answers to prompts: a question is read and checked where it comes in, and written on the teacher's thread.

```text
 GenerateRequest ──> Answerer::read: template, tokenizer, limits ──> AnswerJob ──> production ──> Writer (distill-model)
                                                                                                   │ pieces
 GenerateResponse <───────────────── service::generate <─────────────── Pieces <───────────────────┘
```

On a card keys, values and the prompt's pass may take as much as a batch of the capture does, and no batch is computed beside them: what
was planned for the teacher is enough. On the CPU what is free decides.
*/

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use candle_core::{DType, Device};
use distill_model::{
    Decoder, ModelConfig, Sampling,
    answers::{Asked, Decoding, Heard, Writer, Written, end_ids},
};
use distill_proto::{
    limits::SEQUENCE_TOKENS_MAX,
    v1::{GenerateRequest, generate_request::Prompt},
};
use distill_text::{PromptReader, TokenizerFiles};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};

use crate::{Error, Result};

/// Longest answer in tokens.
pub const ANSWER_TOKENS_MAX: usize = 1 << 14;
/// Bytes of a text or of messages: some 65,536 tokens.
pub const PROMPT_BYTES_MAX: usize = 256 << 10;
/// Texts that end an answer.
pub const STOPS_MAX: usize = 16;
/// Bytes of each.
pub const STOP_BYTES_MAX: usize = 1024;
/// Prompts that are read at a time: a tokenizer takes many times the memory of its text.
const READ_AT_A_TIME: usize = 1;

/// Reads and checks what is asked.
pub struct Answerer {
    tokenizer: TokenizerFiles,
    model: ModelConfig,
    /// The model's directory or file, which says where its answers end.
    path: PathBuf,
    /// Bytes of the card that a batch takes; `None` on the CPU.
    granted_bytes: Option<u64>,
    /// Bytes of an element of activations on the card.
    element_bytes: u64,
    reading: Semaphore,
}

/// What comes of an answer.
#[derive(Debug)]
pub enum Piece {
    /// More text.
    Text(String),
    /// All of it is written.
    Whole(Written),
}

/// Where an answer comes; it ends without a `Whole` where the server stops.
pub type Pieces = mpsc::Receiver<Result<Piece>>;

/// A question that waits for the teacher, or is being answered.
pub struct AnswerJob {
    answerer: Arc<Answerer>,
    asked: Asked,
    decoding: Decoding,
    stops: Vec<String>,
    to: mpsc::Sender<Result<Piece>>,
}

impl Answerer {
    /// For a model whose passes have `batch_tokens` tokens on `device`.
    pub fn new(
        (model, path, tokenizer): (ModelConfig, PathBuf, TokenizerFiles),
        (device, dtype): (&Device, DType),
        batch_tokens: usize,
    ) -> Self {
        let element_bytes = dtype.size_in_bytes() as u64;
        let batch_bytes = batch_tokens as u64 * layer_bytes(&model, element_bytes);
        Self {
            tokenizer,
            model,
            path,
            granted_bytes: (!device.is_cpu()).then_some(batch_bytes),
            element_bytes,
            reading: Semaphore::new(READ_AT_A_TIME),
        }
    }

    /// Reads a question; what can be refused without the teacher is refused.
    ///
    /// # Errors
    /// `NoAnswers`, `NoChatTemplate`, `AnswerTooLarge`, or `Request` by the field that is wrong.
    pub async fn read(self: &Arc<Self>, request: GenerateRequest) -> Result<(AnswerJob, Pieces)> {
        if self.model.model_type.is_outside() {
            let family = self.model.model_type.name();
            return Err(Error::NoAnswers { family });
        }
        let decoding = decoding(&request)?;
        check_stops(&request.stop)?;
        let closed = |_| Error::ShuttingDown;
        let _turn = self.reading.acquire().await.map_err(closed)?;
        let (answerer, prompt) = (self.clone(), request.prompt);
        let ids = tokio::task::spawn_blocking(move || answerer.ids(prompt)).await;
        let ids = ids.map_err(|e| Error::Internal(e.to_string()))??;
        self.check_card(ids.len(), decoding.max_new_tokens)?;
        // Room for the whole answer, so that the teacher waits for no reader: a piece a token, and the end.
        let (to, pieces) = mpsc::channel(decoding.max_new_tokens + 2);
        let seed = request.seed;
        let job = AnswerJob {
            answerer: self.clone(),
            asked: Asked { ids, seed },
            decoding,
            stops: request.stop,
            to,
        };
        Ok((job, pieces))
    }

    fn ids(&self, prompt: Option<Prompt>) -> Result<Vec<u32>> {
        let reader = PromptReader {
            tokenizer: &self.tokenizer,
            positions: self.model.max_position_embeddings.min(SEQUENCE_TOKENS_MAX),
        };
        let short = |field: &str, text: &str| {
            let bytes = text.len();
            let reason = format!("{bytes} bytes, above the limit of {PROMPT_BYTES_MAX}");
            (bytes <= PROMPT_BYTES_MAX)
                .then_some(())
                .ok_or_else(|| Error::request(field, reason))
        };
        match prompt {
            None => Err(Error::request(
                "prompt",
                "there is none; send a text or messages",
            )),
            Some(Prompt::Text(text)) => {
                short("text", &text)?;
                reader
                    .text(&text)
                    .map_err(|reason| Error::request("text", reason))
            }
            Some(Prompt::MessagesJson(json)) => {
                let refused = |reason| Error::request("messages_json", reason);
                short("messages_json", &json)?;
                if !self.tokenizer.has_chat_template() {
                    return Err(Error::NoChatTemplate);
                }
                let messages: Vec<Value> = serde_json::from_str(&json).map_err(|e| {
                    refused(format!("{e}; expected a list of objects with a `role`"))
                })?;
                reader.messages(messages).map_err(refused)
            }
        }
    }

    /// Refuses what takes more of a card than a batch does.
    fn check_card(&self, prompt_tokens: usize, max_new_tokens: usize) -> Result<()> {
        let Some(granted_bytes) = self.granted_bytes else {
            return Ok(());
        };
        let room = self.model.max_position_embeddings;
        let positions = prompt_tokens.saturating_add(max_new_tokens).min(room) as u64;
        let (layers, width) = (self.model.num_hidden_layers, self.model.key_value_size());
        let row_bytes = 2 * (layers * width) as u64 * self.element_bytes;
        let pass_bytes = prompt_tokens as u64 * layer_bytes(&self.model, self.element_bytes);
        let needed_bytes = positions
            .saturating_mul(row_bytes)
            .saturating_add(pass_bytes);
        if needed_bytes > granted_bytes {
            return Err(Error::AnswerTooLarge {
                needed_bytes,
                granted_bytes,
            });
        }
        Ok(())
    }
}

/// What a token takes on its way through a layer: stream and norm in f32 twice each, the norm in the activations' type twice, three
/// matrices of the MLP.
fn layer_bytes(model: &ModelConfig, element_bytes: u64) -> u64 {
    let (d, inner) = (model.hidden_size as u64, model.intermediate_size as u64);
    4 * 4 * d + 2 * element_bytes * d + 3 * element_bytes * inner
}

fn decoding(request: &GenerateRequest) -> Result<Decoding> {
    let max_new_tokens = request.max_new_tokens as usize;
    if max_new_tokens > ANSWER_TOKENS_MAX {
        let reason = format!("{max_new_tokens} tokens, above the limit of {ANSWER_TOKENS_MAX}");
        return Err(Error::request("max_new_tokens", reason));
    }
    let decoding = Decoding {
        max_new_tokens,
        sampling: Sampling {
            temperature: request.temperature,
            top_k: request.top_k as usize,
            top_p: request.top_p.unwrap_or(1.0),
            min_p: request.min_p,
        },
        seed: request.seed,
    };
    decoding.validate().map_err(|message| {
        let (field, reason) = message.split_once(": ").unwrap_or(("sampling", message));
        Error::request(field, reason)
    })?;
    Ok(decoding)
}

fn check_stops(stops: &[String]) -> Result<()> {
    if stops.len() > STOPS_MAX {
        let reason = format!("{} texts, above the limit of {STOPS_MAX}", stops.len());
        return Err(Error::request("stop", reason));
    }
    let long = stops.iter().position(|stop| stop.len() > STOP_BYTES_MAX);
    match long {
        Some(number) => {
            let reason = format!("is longer than {STOP_BYTES_MAX} bytes");
            Err(Error::request(format!("stop[{number}]"), reason))
        }
        None => Ok(()),
    }
}

impl AnswerJob {
    /// Whether nobody waits for it any more.
    pub fn is_abandoned(&self) -> bool {
        self.to.is_closed()
    }

    /// Tells who waits for it why there is no answer.
    pub fn refuse(&self, error: Error) {
        // Nobody may be left to be told.
        let _ = self.to.try_send(Err(error));
    }

    /// Writes it with the teacher. `goes_on` is called before every token, for whatever else the thread has to do, and says whether to
    /// write another.
    pub fn write(&self, decoder: Option<&Decoder>, goes_on: &dyn Fn() -> bool) {
        let panicked = |_| Error::Internal("answering panicked; see the log".into());
        let family = self.answerer.model.model_type.name();
        let written = match decoder {
            None => Err(Error::NoAnswers { family }),
            Some(decoder) => catch_unwind(AssertUnwindSafe(|| self.answer(decoder, goes_on)))
                .map_err(panicked)
                .flatten()
                .map_err(|error| error.explained(decoder.device())),
        };
        // What the cache took is the capture's.
        distill_program::memory::give_back();
        if let Err(error) = written {
            tracing::error!("a prompt cannot be answered: {error}");
            self.refuse(error);
        }
    }

    fn answer(&self, decoder: &Decoder, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let Answerer {
            tokenizer, path, ..
        } = self.answerer.as_ref();
        let ends = end_ids(path, tokenizer)?;
        let is_over = || self.is_abandoned() || !goes_on();
        let model = (decoder, tokenizer);
        let writer = Writer::new(model, ends, self.decoding, &self.stops, is_over);
        let mut send = |heard: Heard<'_>| {
            let piece = match heard {
                Heard::Text(_, text) => Piece::Text(text.to_owned()),
                Heard::Whole(_, written) => Piece::Whole(written.clone()),
            };
            Ok::<_, Error>(self.to.try_send(Ok(piece)).is_ok())
        };
        writer.write(std::slice::from_ref(&self.asked), &mut send)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
