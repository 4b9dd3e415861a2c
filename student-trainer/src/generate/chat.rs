//! Provides `chat`: a conversation with a student on the terminal, by its chat template.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use distill_program::console;
use serde_json::{Value, json};

use super::{
    ChatConfig, Finish, Heard, Side, Writer, Written, beside, find_student, load, print,
    prompt_reader,
    prompts::{Question, Reader},
    remote::RemoteTeacher,
    sides,
};
use crate::{Error, Result, shutdown::Shutdown, student::Place};

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;

const HELP: &str = "/reset forgets the conversation, /exit or Ctrl-D ends the program, Ctrl-C ends an answer; everything else is said to the model";

/// Talks until the input ends. False where a signal other than Ctrl-C ended it. Blocks the thread.
///
/// # Errors
/// A model or an adapter that cannot be used; a teacher that cannot be asked; an input or output that fails.
pub fn run(config: &ChatConfig, shutdown: &Shutdown) -> Result<bool> {
    config.validate()?;
    let (party, decoding) = (config.party(), config.decoding());
    let teacher = party
        .teacher
        .as_ref()
        .map(|teacher| RemoteTeacher::connect(teacher, decoding, &config.stop, shutdown));
    let teacher = teacher.transpose()?;
    if party.has_student() {
        return talk_with_student(config, teacher.as_ref(), shutdown);
    }
    // By the teacher's own template, which it refuses to have where it has none.
    let reader = Reader {
        student: None,
        chat: true,
        system: config.system.as_deref(),
    };
    talk(
        config,
        sides(None, teacher.as_ref(), false),
        reader,
        shutdown,
    )
}

/// Talks with the student, and with whoever stands beside it.
fn talk_with_student(
    config: &ChatConfig,
    teacher: Option<&RemoteTeacher>,
    shutdown: &Shutdown,
) -> Result<bool> {
    let place = Place::choose(&config.device, config.dtype)?;
    let (adapter, kwargs) = (config.adapter.as_deref(), &config.chat_template_kwargs);
    let (files, adapter) = find_student(&config.student, adapter, kwargs, shutdown)?;
    let (decoder, switch) = load(&files, adapter.as_deref(), config.quantize, &place)?;
    let has_template = files.tokenizer.has_chat_template();
    if !has_template {
        console::say(format_args!(
            "{}: the tokenizer has no chat template, so every line is continued as plain text, without the lines before it{}",
            files.dir.display(),
            if config.system.is_some() {
                " and without --system"
            } else {
                ""
            }
        ));
    }
    let reader = Reader {
        student: Some(prompt_reader(&files)),
        chat: has_template,
        system: config.system.as_deref(),
    };
    let writer = Writer::new(&decoder, &files, config.decoding(), &config.stop, shutdown)?;
    let sides = sides(Some((&writer, switch.as_ref())), teacher, config.compare);
    talk(config, sides, reader, shutdown).map_err(|error| place.explained(error))
}

fn talk(
    config: &ChatConfig,
    sides: Vec<Side<'_>>,
    reader: Reader<'_>,
    shutdown: &Shutdown,
) -> Result<bool> {
    if shutdown.is_requested() {
        return Err(Error::Stopped("before the conversation began"));
    }
    if io::stdin().is_terminal() {
        console::say(HELP);
    }
    let mut chat = Chat {
        conversations: vec![Vec::new(); sides.len()],
        reader,
        sides,
        seed: config.sample_seed,
        turns: 0,
    };
    chat.talk(&mut io::stdin().lock(), shutdown)
}

struct Chat<'a> {
    reader: Reader<'a>,
    /// Who answers.
    sides: Vec<Side<'a>>,
    seed: u64,
    turns: u64,
    /// What was said so far, with each of the sides.
    conversations: Vec<Vec<Value>>,
}

/// What a line asks for.
enum Line {
    Say(String),
    Nothing,
    End,
}

impl<'a> Chat<'a> {
    fn talk(&mut self, input: &mut impl BufRead, shutdown: &Shutdown) -> Result<bool> {
        let is_terminal = io::stdin().is_terminal();
        loop {
            if is_terminal && !print("> ")? {
                return Ok(true);
            }
            let line = self.read(input)?;
            // Ctrl-C while nothing was being written.
            shutdown.withdraw_interrupt();
            if shutdown.is_requested() {
                return Ok(false);
            }
            match line {
                Line::End => {
                    // The prompt stands in this line.
                    return if is_terminal { print("\n") } else { Ok(true) }.map(|_| true);
                }
                Line::Nothing => {}
                Line::Say(text) => {
                    if !self.answer(&text)? {
                        return Ok(true);
                    }
                    shutdown.withdraw_interrupt();
                    if shutdown.is_requested() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn read(&mut self, input: &mut impl BufRead) -> Result<Line> {
        let mut bytes = Vec::new();
        let failed = Error::io("read", Path::new("standard input"));
        let read = input.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
        if read.map_err(failed)? == 0 {
            return Ok(Line::End);
        }
        if bytes.len() as u64 > LINE_BYTES_MAX {
            return Err(Error::Config(format!(
                "standard input: a line of more than {LINE_BYTES_MAX} bytes; give long prompts to generate --prompts FILE"
            )));
        }
        let Ok(text) = String::from_utf8(bytes) else {
            console::say(
                "that line is not UTF-8 and was not said; set the terminal or the file to UTF-8",
            );
            return Ok(Line::Nothing);
        };
        Ok(match text.trim() {
            "" => Line::Nothing,
            "/exit" => Line::End,
            "/reset" => {
                self.conversations.iter_mut().for_each(Vec::clear);
                console::say("(the conversation begins anew)");
                Line::Nothing
            }
            "/help" => {
                console::say(HELP);
                Line::Nothing
            }
            text => Line::Say(text.to_owned()),
        })
    }

    /// Says `text` to the model. False where nobody reads the answer.
    fn answer(&mut self, text: &str) -> Result<bool> {
        self.turns += 1;
        if self.sides.len() == 1 {
            let mut is_read = true;
            let written = self.ask(0, text, &mut |heard| {
                if let Heard::Text(_, text) = heard {
                    is_read = print(text)?;
                }
                Ok(is_read)
            })?;
            let Some(written) = written else {
                return Ok(true);
            };
            is_read = is_read && print("\n")?;
            remark(&written, "");
            self.remember(0, text, &written);
            return Ok(is_read);
        }
        let mut answers = Vec::new();
        for side in 0..self.sides.len() {
            let Some(answer) = self.ask(side, text, &mut |_| Ok(true))? else {
                return Ok(true);
            };
            answers.push((self.sides[side].name, answer));
        }
        // Not before all have answered: where one cannot be asked, nobody was.
        for (side, (_, written)) in answers.iter().enumerate() {
            self.remember(side, text, written);
        }
        let texts = answers.iter().map(|(name, one)| (*name, one.text.as_str()));
        let is_read = print(&beside(&texts.collect::<Vec<_>>(), console::columns()))?;
        for (name, written) in &answers {
            remark(written, &format!("{name}: "));
        }
        Ok(is_read)
    }

    /// Asks one of the sides. `None` where the question cannot be asked, which is said.
    fn ask(
        &self,
        side: usize,
        text: &str,
        hear: &mut dyn FnMut(Heard<'_>) -> Result<bool>,
    ) -> Result<Option<Written>> {
        let question = self.question(side, text).map_err(Error::Config);
        let written = question.and_then(|question| {
            let seed = self.seed.wrapping_add(self.turns);
            self.sides[side].write(&[question], seed, hear)
        });
        match written {
            // What is wrong is the question.
            Err(Error::Config(reason)) => {
                console::say(format_args!(
                    "{reason} (this was not said; /reset begins a new conversation)"
                ));
                Ok(None)
            }
            written => Ok(written?.into_iter().next()),
        }
    }

    /// What was said belongs to the conversation from now on.
    fn remember(&mut self, side: usize, text: &str, written: &Written) {
        if self.reader(side).chat {
            self.conversations[side].extend([
                json!({"role": "user", "content": text}),
                json!({"role": "assistant", "content": written.text}),
            ]);
        }
    }

    /// A teacher reads its conversation itself.
    fn reader(&self, side: usize) -> Reader<'a> {
        if self.sides[side].is_teacher() {
            return Reader {
                student: None,
                chat: true,
                ..self.reader
            };
        }
        self.reader
    }

    fn question(&self, side: usize, text: &str) -> Result<Question, String> {
        let reader = self.reader(side);
        if !reader.chat {
            return reader.text(text);
        }
        let mut messages = self.conversations[side].clone();
        messages.push(json!({"role": "user", "content": text}));
        reader.messages(messages)
    }
}

/// Says why an answer did not end by itself.
fn remark(written: &Written, whose: &str) {
    match written.finish {
        Finish::Length => console::say(format_args!(
            "({whose}cut after {} tokens; --max-new-tokens allows more)",
            written.tokens
        )),
        Finish::Interrupted => console::say(format_args!("({whose}interrupted)")),
        Finish::End | Finish::Stop => {}
    }
}
