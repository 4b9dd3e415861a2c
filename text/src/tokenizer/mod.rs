//! Provides the tokenizer of a model directory: what turns text into ids, its fingerprint, and its chat template.

mod added;
mod bounds;
mod bytes;
mod digest;
mod encode;
mod guard;
mod load;
mod normalize;
mod origin;
mod prefix;
mod special;
mod stream;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use distill_program::{FileError, files, output};
use distill_proto::Fingerprint;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::{
    Error, Result,
    chat::{ChatTemplate, ChatTemplateKwargs, RenderInput},
    limits::ENCODE_PATIENCE,
};
pub use bytes::{Token, Vocabulary};
pub use encode::Encoded;
pub(crate) use encode::offset;
use guard::within;
use load::Built;
pub(crate) use origin::Origin;
use special::SpecialTokens;
pub use stream::TextStream;

/// Files that make up a tokenizer; what is there of them is copied beside an adapter.
const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// The tokenizer of a model directory.
///
/// Truncation, padding and post-processor of `tokenizer.json` are taken off: windows and masks are made here, and what
/// the post-processor puts in front of a text is kept as [`TokenizerFiles::prefix_ids`].
pub struct TokenizerFiles {
    dir: PathBuf,
    /// What there is instead of files in `dir`, where that is a file of another format.
    texts: Vec<(&'static str, String)>,
    /// Shared with the thread that encodes.
    built: Arc<Built>,
    /// Whether it puts something before every text.
    puts_before: bool,
    special: SpecialTokens,
    template: Option<ChatTemplate>,
    fingerprint: Fingerprint,
    vocabulary_fingerprint: Fingerprint,
}

impl TokenizerFiles {
    /// Opens the tokenizer of a model directory: `tokenizer.json`, and, where they exist, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// Names the file and the field that cannot be used.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::read(Origin::Directory(dir), Vec::new())
    }

    /// Takes a tokenizer from what the file at `path`, such as a GGUF model, says about it: the contents that files of a model
    /// directory would have, by their names.
    ///
    /// # Errors
    /// As [`TokenizerFiles::open`].
    pub fn from_texts(path: &Path, texts: Vec<(&'static str, String)>) -> Result<Self> {
        let origin = Origin::Texts {
            path,
            texts: &texts,
        };
        Self::read(origin, texts.clone())
    }

    fn read(origin: Origin<'_>, texts: Vec<(&'static str, String)>) -> Result<Self> {
        let built = load::load(origin)?;
        let special = SpecialTokens::read(origin, &built.tokenizer)?;
        if special.eos_id().is_none() {
            special::warn_of_no_end(origin.path());
        }
        let template = ChatTemplate::read(origin, special.contents())?;
        Ok(Self {
            dir: origin.path().to_owned(),
            texts,
            puts_before: prefix::puts_before(&built.tokenizer),
            special,
            template,
            fingerprint: digest::behaviour(&built.tokenizer, &built.path)?,
            vocabulary_fingerprint: digest::vocabulary(&built.tokenizer),
            built: Arc::new(built),
        })
    }

    /// The tokenizer itself, without truncation, padding and post-processor.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.built.tokenizer
    }

    /// Effective vocabulary: the largest known id plus one. Rows of a head from there on are padding.
    pub fn size(&self) -> u32 {
        self.built.size
    }

    /// Checks that the head of the model whose configuration is at `config` has a row for every id.
    ///
    /// # Errors
    /// `TokenizerFile` with both numbers and both files.
    pub fn check_head(&self, rows: usize, config: &Path) -> Result<()> {
        if self.size() as usize <= rows {
            return Ok(());
        }
        let reason = format!(
            "the tokenizer knows {} ids, counting those that the files beside it add, but the head has {rows} rows (vocab_size \
             of {}); the tokenizer and the weights belong to different models, or tokens were added without resizing the \
             model",
            self.size(),
            config.display()
        );
        Err(load::bad(&self.built.path, "model.vocab", reason))
    }

    /// Digest of what the tokenizer *does*: vocabulary, merges, normaliser, pre-tokenizer, added tokens with their flags.
    ///
    /// Uploads of one tokenizer differ in file bytes, pad token, truncation, padding, post-processor, decoder and the
    /// spelling of merges; none of it counts. Equal fingerprints mean equal ids for every text.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Digest of which id means which token, and of nothing else.
    ///
    /// Where it is equal but [`TokenizerFiles::fingerprint`] is not (one upload of Qwen2.5 normalises to NFC, another
    /// does not), ids still mean the same on both sides: frames carry ids, so such a pair can be trained without any
    /// mapping of vocabularies.
    pub fn vocabulary_fingerprint(&self) -> Fingerprint {
        self.vocabulary_fingerprint
    }

    /// What every id stands for; index = id, up to [`TokenizerFiles::size`].
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary::read(self.tokenizer(), self.size(), self.eos_id())
    }

    /// The bytes that every token stands for, special tokens by their content; index = id, `None` where an id has no
    /// token.
    pub fn token_bytes(&self) -> Vec<Option<Vec<u8>>> {
        let tokens = self.vocabulary().tokens.into_iter();
        tokens.map(|token| Some(token?.bytes)).collect()
    }

    /// Whether a token is special: the end of a completion, or one that is marked so.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.tokenizer().get_added_vocabulary();
        let token = added.get_added_tokens_decoder().get(&id);
        self.eos_id() == Some(id) || token.is_some_and(|token| token.special)
    }

    /// Id of the token that ends a completion: `eos_token` of the configuration, else the first `eos_token_id` of
    /// `generation_config.json` or `config.json`.
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos_id()
    }

    /// The text of that token.
    pub(crate) fn eos_token(&self) -> Option<String> {
        self.tokenizer().id_to_token(self.eos_id()?)
    }

    /// Id of the special token that the configuration calls `name`, such as `bos_token`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        let content = self.special.contents().get(name)?;
        self.tokenizer().token_to_id(content)
    }

    /// Ids that the tokenizer itself puts before every text (Llama's begin-of-text); empty for most.
    pub fn prefix_ids(&self) -> &[u32] {
        &self.built.prefix_ids
    }

    /// Whether the directory has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The chat template as its author wrote it, the one for conversations without tools.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.template.as_ref()?.source()
    }

    /// Sets variables of the chat template that every conversation is rendered with, unless its row says otherwise.
    pub fn set_chat_template_kwargs(&mut self, kwargs: &ChatTemplateKwargs) {
        if let Some(template) = &mut self.template {
            template.set_kwargs(kwargs);
        }
    }

    /// Renders `messages` (a list of objects with `role` and `content`) through the chat template.
    ///
    /// # Errors
    /// `NoChatTemplate`; `ChatTemplate` where it raises an exception or does not end.
    pub fn render_chat(&self, messages: &Value, add_generation_prompt: bool) -> Result<String> {
        let input = RenderInput {
            messages,
            tools: &Value::Null,
            kwargs: &Map::new(),
            add_generation_prompt,
        };
        Ok(self.template()?.render(&input)?.text)
    }

    pub(crate) fn template(&self) -> Result<&ChatTemplate> {
        let template = self.template.as_ref();
        template.ok_or_else(|| Error::NoChatTemplate {
            path: self.dir.clone(),
        })
    }

    /// Encodes `text` without special tokens around it; ranges are bytes of `text`.
    ///
    /// # Errors
    /// `Encode` where the tokenizer's model cannot represent the text, or takes too long.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let (built, owned) = (Arc::clone(&self.built), text.to_owned());
        let mebibytes = u32::try_from(text.len() >> 20).unwrap_or(u32::MAX);
        let patience = ENCODE_PATIENCE.saturating_mul(mebibytes.saturating_add(1));
        within(patience, move || {
            encode::encode(&built.tokenizer, &built.rules, &owned)
        })
        .map_err(Error::Encode)?
    }

    /// Whether the tokenizer puts something before every text, so that a text in parts is not tokenised as a whole one.
    pub(crate) fn puts_before(&self) -> bool {
        self.puts_before
    }

    /// The files that make up the tokenizer, those that are there: name and path.
    pub fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let files = FILES.iter().map(|name| (*name, self.dir.join(name)));
        files.filter(|(_, path)| path.is_file()).collect()
    }

    /// What `tokenizer.json` would say of it: with the tokens that other files add, without a post-processor.
    ///
    /// # Errors
    /// `TokenizerFile` where the library cannot write what it has read.
    pub fn to_json(&self) -> Result<Value> {
        digest::json(self.tokenizer()).map_err(|reason| load::bad(&self.built.path, "file", reason))
    }

    /// Copies the files that make up the tokenizer into `dir`, which exists.
    ///
    /// # Errors
    /// `Io` naming the file that could not be read or written.
    pub fn copy_to(&self, dir: &Path) -> Result<()> {
        for (name, from) in self.files() {
            let to = dir.join(name);
            files::create_directory(files::directory_of(&to))?;
            fs::copy(&from, to).map_err(FileError::at("copy", &from))?;
        }
        for (name, text) in &self.texts {
            let to = dir.join(name);
            output::write(&to, text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod added_tests;
#[cfg(test)]
mod bytes_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
