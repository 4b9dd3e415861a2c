/*! Provides answers of a student, its base or both, and of a teacher by address: to prompts (`generate`), in a conversation (`chat`), and to held-out prompts (`eval`).

```text
 --prompt, --prompts ──> prompts ─────────┐
 conversation ──> chat template ──> ids ──┼──> sides: writer: model's Writer ──> text as it becomes certain ──> terminal, JSON
 held-out sequences ──────────────> ids ──┘           remote: a teacher's ─────> text as it comes ──────────────┘
 base and adapter ──> adapter: one model, its adapter on or off
```
*/

mod adapter;
pub mod chat;
mod columns;
mod config;
mod decoding;
mod prompts;
mod remote;
mod sides;
mod writer;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::path::Path;

use distill_program::console;
use distill_text::PromptReader;
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
pub(crate) use decoding::{check_decoding, decoding_of};
pub(crate) use distill_model::answers::{Asked, Heard};
pub use distill_model::answers::{Decoding, Finish, Written};
use prompts::{Question, Reader};
use remote::RemoteTeacher;
use sides::{Side, sides};
pub(crate) use writer::Writer;

/// Answers as `config` says, and prints. Whether every answer is whole, or its reader has left. Blocks the thread.
///
/// # Errors
/// A prompt, a model or an adapter that cannot be used; a teacher that cannot be asked; a result that cannot be printed.
pub fn run(config: &GenerateConfig, shutdown: &Shutdown) -> Result<bool> {
    config.validate()?;
    let (party, decoding) = (config.party(), config.decoding());
    let connect = || {
        let teacher = party.teacher.as_ref();
        let connect = |teacher| RemoteTeacher::connect(teacher, decoding, &config.stop, shutdown);
        teacher.map(connect).transpose()
    };
    if !party.has_student() {
        let questions = read(config, None)?;
        let teacher = connect()?;
        return print_answers(config, &sides(None, teacher.as_ref(), false), &questions);
    }
    let place = Place::choose(&config.device, config.dtype)?;
    let (adapter, kwargs) = (config.adapter.as_deref(), &config.chat_template_kwargs);
    let (files, adapter) = find_student(&config.student, adapter, kwargs, shutdown)?;
    let questions = read(config, Some(&files))?;
    let teacher = connect()?;
    let (decoder, switch) = load(&files, adapter.as_deref(), config.quantize, &place)?;
    if shutdown.is_requested() {
        return Err(Error::Stopped("before there was an answer"));
    }
    let writer = Writer::new(&decoder, &files, decoding, &config.stop, shutdown)?;
    let student = Some((&writer, switch.as_ref()));
    let sides = sides(student, teacher.as_ref(), config.compare);
    print_answers(config, &sides, &questions).map_err(|error| place.explained(error))
}

/// The prompts, checked before any weights are read as far as they can be here.
fn read(config: &GenerateConfig, files: Option<&StudentFiles>) -> Result<Vec<Question>> {
    let reader = Reader {
        student: files.map(prompt_reader),
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

fn prompt_reader(files: &StudentFiles) -> PromptReader<'_> {
    PromptReader {
        tokenizer: &files.tokenizer,
        positions: files.config.max_position_embeddings,
    }
}

fn print_answers(
    config: &GenerateConfig,
    sides: &[Side<'_>],
    questions: &[Question],
) -> Result<bool> {
    match sides {
        [side] => print_as_written(config, side, questions),
        sides => print_compared(config, sides, questions),
    }
}

/// Prints every answer as it is written; those of several prompts in their order, each as a whole before the next begins.
fn print_as_written(
    config: &GenerateConfig,
    side: &Side<'_>,
    questions: &[Question],
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
    let written = side.write(questions, config.sample_seed, &mut hear)?;
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

/// Answers with each of `sides`, one after the other, and prints all answers to each prompt.
fn print_compared(
    config: &GenerateConfig,
    sides: &[Side<'_>],
    questions: &[Question],
) -> Result<bool> {
    let mut answers = Vec::new();
    for side in sides {
        answers.push(side.write(questions, config.sample_seed, &mut |_| Ok(true))?);
    }
    let columns = console::columns();
    for (number, question) in questions.iter().enumerate() {
        let names = sides.iter().map(|side| side.name);
        let each = names.zip(answers.iter().map(|answers| &answers[number]));
        let out = if config.json {
            line(question, &each.collect::<Vec<_>>())
        } else {
            let heading = if questions.len() > 1 {
                title(number, question)
            } else {
                String::new()
            };
            let texts = each.map(|(name, one)| (name, one.text.as_str()));
            heading + &beside(&texts.collect::<Vec<_>>(), columns)
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
    let is_terminal = console::columns().is_some();
    let shown = if is_terminal {
        harmless(text)
    } else {
        text.into()
    };
    console::stream(shown).map_err(to_stdout)
}

/// The text without what would steer a terminal: a model wrote it, maybe somebody else's.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(steers) {
        return text.replace(steers, "").into();
    }
    text.into()
}

fn to_stdout(reason: io::Error) -> Error {
    Error::io("write to", Path::new("standard output"))(reason)
}
