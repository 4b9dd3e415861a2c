/*! Provides answers of a student, its base or both: to prompts (`generate`), in a conversation (`chat`), and to held-out prompts (`eval`).

```text
 --prompt, --prompts ──> prompts: ids ──┐
 conversation ──> chat template ──> ids ─┼──> writer: model's Generator ──> text as it becomes certain ──> terminal, JSON
 held-out sequences ─────────────> ids ──┘                      └── ends, stop strings
 base and adapter ──> adapter: one model, its adapter on or off
```
*/

mod adapter;
pub mod chat;
mod columns;
mod config;
mod decoding;
mod ends;
mod prompts;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use distill_program::console;
use serde_json::json;

use crate::{
    Error, Result,
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
pub(crate) use adapter::{Switch, find_student, load};
use columns::beside;
pub(crate) use config::check_compare;
pub use config::{ChatConfig, GenerateConfig};
pub use decoding::Decoding;
pub(crate) use ends::end_ids;
use prompts::{Question, Reader};
pub(crate) use writer::{Asked, Heard, Writer};
pub use writer::{Finish, Written};

/// The names of the two that `--compare` sets beside each other, and whether each has the adapter on.
const SIDES: [(&str, bool); 2] = [("base", false), ("adapter", true)];

/// Answers as `config` says, and prints. Whether every answer is whole, or its reader has left. Blocks the thread.
///
/// # Errors
/// A prompt, a model or an adapter that cannot be used; a result that cannot be printed.
pub fn run(config: &GenerateConfig, shutdown: &Shutdown) -> Result<bool> {
    config.validate()?;
    let place = Place::choose(&config.device, config.dtype)?;
    let (adapter, kwargs) = (config.adapter.as_deref(), &config.chat_template_kwargs);
    let files = find_student(&config.student, adapter, kwargs, shutdown)?;
    let questions = read(config, &files)?;
    let (decoder, switch) = load(&files, adapter, config.quantize, &place)?;
    if shutdown.is_requested() {
        return Err(Error::Stopped("before there was an answer"));
    }
    let decoding = config.decoding();
    let writer = Writer::new(&decoder, &files, decoding, &config.stop, shutdown)?;
    let asked = questions.iter().zip(0..).map(|(question, number)| Asked {
        ids: question.ids.clone(),
        seed: decoding.seed.wrapping_add(number),
    });
    let asked: Vec<Asked> = asked.collect();
    let whole = match switch.filter(|_| config.compare) {
        None => print_as_written(config, &writer, &questions, &asked),
        Some(switch) => print_compared(config, &writer, &switch, &questions, &asked),
    };
    whole.map_err(|error| place.explained(error))
}

/// The prompts, checked before any weights are read.
fn read(config: &GenerateConfig, files: &StudentFiles) -> Result<Vec<Question>> {
    let reader = Reader {
        tokenizer: &files.tokenizer,
        positions: files.config.max_position_embeddings,
        chat: config.chat,
        system: config.system.as_deref(),
    };
    let mut questions = Vec::new();
    for (text, number) in config.prompt.iter().zip(1..) {
        let refused = |reason: String| Error::Config(format!("prompt {number}: {reason}"));
        questions.push(reader.text(text).map_err(refused)?);
    }
    if let Some(path) = &config.prompts {
        questions.extend(reader.file(path)?);
    }
    Ok(questions)
}

/// Prints every answer as it is written; those of several prompts in their order, each as a whole before the next begins.
fn print_as_written(
    config: &GenerateConfig,
    writer: &Writer<'_>,
    questions: &[Question],
    asked: &[Asked],
) -> Result<bool> {
    let mut printer = Printer {
        config,
        questions,
        current: 0,
        waiting: vec![(String::new(), None); questions.len()],
        is_begun: false,
    };
    let mut is_read = true;
    let mut hear = |heard: Heard<'_>| {
        is_read = printer.hear(heard)?;
        Ok(is_read)
    };
    let written = writer.write(asked, &mut hear)?;
    if is_read {
        printer.end(&written)?;
    }
    let is_whole = written.iter().all(|one| one.finish != Finish::Interrupted);
    Ok(is_whole || !is_read)
}

/// Prints answers in the order of their prompts.
struct Printer<'a> {
    config: &'a GenerateConfig,
    questions: &'a [Question],
    /// The first prompt whose answer is not whole yet.
    current: usize,
    /// Text that is there already, and the whole answer, by prompt.
    waiting: Vec<(String, Option<Written>)>,
    /// Whether something was printed of the current one.
    is_begun: bool,
}

impl Printer<'_> {
    /// False where nobody reads any more.
    fn hear(&mut self, heard: Heard<'_>) -> Result<bool> {
        match heard {
            Heard::Text(number, text) => self.waiting[number].0 += text,
            Heard::Whole(number, written) => self.waiting[number].1 = Some(written.clone()),
        }
        let mut out = String::new();
        while let Some((text, whole)) = self.waiting.get_mut(self.current) {
            let (text, whole) = (std::mem::take(text), whole.take());
            if self.config.json {
                let Some(whole) = whole else { break };
                out += &line(&self.questions[self.current], &[("", &whole)]);
            } else {
                if !self.is_begun && self.questions.len() > 1 {
                    out += &title(self.current, &self.questions[self.current]);
                }
                self.is_begun = true;
                out += &text;
                if whole.is_none() {
                    break;
                }
                out.push('\n');
            }
            self.is_begun = false;
            self.current += 1;
        }
        Ok(out.is_empty() || print(&out)?)
    }

    /// What there is of answers that were not completed.
    fn end(&mut self, written: &[Written]) -> Result<()> {
        for (number, one) in written.iter().enumerate().skip(self.current) {
            if !self.hear(Heard::Whole(number, one))? {
                break;
            }
        }
        Ok(())
    }
}

/// Answers with the base, then with the adapter, and prints both of each prompt.
fn print_compared(
    config: &GenerateConfig,
    writer: &Writer<'_>,
    switch: &Switch,
    questions: &[Question],
    asked: &[Asked],
) -> Result<bool> {
    let mut answers = Vec::new();
    for (_, on) in SIDES {
        switch.put(on)?;
        answers.push(writer.write(asked, &mut |_| Ok(true))?);
    }
    let columns = console::columns();
    for (number, question) in questions.iter().enumerate() {
        let [base, adapter] = [0, 1].map(|side: usize| &answers[side][number]);
        let [(left, _), (right, _)] = SIDES;
        let out = if config.json {
            line(question, &[(left, base), (right, adapter)])
        } else {
            let heading = if questions.len() > 1 {
                title(number, question)
            } else {
                String::new()
            };
            heading + &beside([(left, &base.text), (right, &adapter.text)], columns)
        };
        if !print(&out)? {
            return Ok(true);
        }
    }
    let mut all = answers.iter().flatten();
    Ok(all.all(|one| one.finish != Finish::Interrupted))
}

/// One object: the prompt, and each answer under its name; an answer without a name has no object of its own.
fn line(question: &Question, answers: &[(&str, &Written)]) -> String {
    let mut object = json!({"prompt": question.text});
    for (name, written) in answers {
        let written = json!(written);
        match (object.as_object_mut(), written) {
            (Some(object), serde_json::Value::Object(fields)) if name.is_empty() => {
                object.extend(fields);
            }
            (Some(object), written) => {
                object.insert((*name).to_owned(), written);
            }
            _ => {}
        }
    }
    format!("{object}\n")
}

fn title(number: usize, question: &Question) -> String {
    format!("--- {}: {}\n", number + 1, question.title())
}

/// Prints a part of the result; false where nobody reads any more.
fn print(text: &str) -> Result<bool> {
    console::stream(text).map_err(to_stdout)
}

fn to_stdout(reason: io::Error) -> Error {
    Error::io("write to", Path::new("standard output"))(reason)
}
