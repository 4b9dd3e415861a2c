//! Provides `chat`: a conversation with a student on the terminal, by its chat template.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use distill_program::console;
use serde_json::{Value, json};

use super::{
    Asked, ChatConfig, Finish, Heard, SIDES, Switch, Writer, Written, beside, find_student, load,
    print,
    prompts::{Question, Reader},
};
use crate::{Error, Result, shutdown::Shutdown, student::Place};

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;

const HELP: &str = "/reset forgets the conversation, /exit or Ctrl-D ends the program, Ctrl-C ends an answer; everything else is said to the model";

/// Talks until the input ends. False where a signal other than Ctrl-C ended it. Blocks the thread.
///
/// # Errors
/// A model or an adapter that cannot be used; an input or output that fails.
pub fn run(config: &ChatConfig, shutdown: &Shutdown) -> Result<bool> {
    config.validate()?;
    let place = Place::choose(&config.device, config.dtype)?;
    let (adapter, kwargs) = (config.adapter.as_deref(), &config.chat_template_kwargs);
    let files = find_student(&config.student, adapter, kwargs, shutdown)?;
    let (decoder, switch) = load(&files, adapter, config.quantize, &place)?;
    if shutdown.is_requested() {
        return Err(Error::Stopped("before the conversation began"));
    }
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
    if io::stdin().is_terminal() {
        console::say(HELP);
    }
    let decoding = config.decoding();
    let mut chat = Chat {
        reader: Reader {
            tokenizer: &files.tokenizer,
            positions: files.config.max_position_embeddings,
            chat: has_template,
            system: config.system.as_deref(),
        },
        writer: Writer::new(&decoder, &files, decoding, &config.stop, shutdown)?,
        switch: switch.filter(|_| config.compare),
        seed: decoding.seed,
        turns: 0,
        conversations: Default::default(),
    };
    chat.talk(&mut io::stdin().lock(), shutdown)
        .map_err(|error| place.explained(error))
}

struct Chat<'a> {
    reader: Reader<'a>,
    writer: Writer<'a>,
    /// Where base and adapter are compared.
    switch: Option<Switch>,
    seed: u64,
    turns: u64,
    /// What was said so far, with each of the sides; with the first one alone where there is one.
    conversations: [Vec<Value>; 2],
}

/// What a line asks for.
enum Line {
    Say(String),
    Nothing,
    End,
}

impl Chat<'_> {
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
                self.conversations = Default::default();
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
        if self.switch.is_none() {
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
            return Ok(is_read);
        }
        let mut answers = Vec::new();
        for (side, (_, on)) in SIDES.into_iter().enumerate() {
            if let Some(switch) = &self.switch {
                switch.put(on)?;
            }
            let Some(answer) = self.ask(side, text, &mut |_| Ok(true))? else {
                return Ok(true);
            };
            answers.push(answer);
        }
        let [base, adapter] =
            [0, 1].map(|side: usize| (SIDES[side].0, answers[side].text.as_str()));
        let is_read = print(&beside([base, adapter], console::columns()))?;
        for ((name, _), written) in SIDES.into_iter().zip(&answers) {
            remark(written, &format!("{name}: "));
        }
        Ok(is_read)
    }

    /// Goes on with one conversation; the answer, which then belongs to it. `None` where the question cannot be asked, which is said.
    fn ask(
        &mut self,
        side: usize,
        text: &str,
        hear: &mut dyn FnMut(Heard<'_>) -> Result<bool>,
    ) -> Result<Option<Written>> {
        let question = match self.question(side, text) {
            Ok(question) => question,
            Err(reason) => {
                console::say(format_args!(
                    "{reason} (this was not said; /reset begins a new conversation)"
                ));
                return Ok(None);
            }
        };
        let asked = Asked {
            ids: question.ids,
            seed: self.seed.wrapping_add(self.turns),
        };
        let written = self.writer.write(&[asked], hear)?;
        let Some(written) = written.into_iter().next() else {
            return Ok(None);
        };
        if self.reader.chat {
            self.conversations[side].extend([
                json!({"role": "user", "content": text}),
                json!({"role": "assistant", "content": written.text}),
            ]);
        }
        Ok(Some(written))
    }

    fn question(&self, side: usize, text: &str) -> Result<Question, String> {
        if !self.reader.chat {
            return self.reader.text(text);
        }
        let mut messages = self.conversations[side].clone();
        messages.push(json!({"role": "user", "content": text}));
        self.reader.messages(messages)
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
