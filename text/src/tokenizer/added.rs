//! Provides the tokens that files beside `tokenizer.json` add to it, as `transformers` adds them.
//!
//! All tokens of `added_tokens_decoder` are added again after those of `tokenizer.json`, in order of their ids: one that the
//! tokenizer knows keeps its id and takes the flags of `tokenizer_config.json`, another one gets the next free id. Named
//! tokens (`bos_token`, `pad_token`, ...) and extra special tokens follow where none of these has their content. Without an
//! `added_tokens_decoder`, the older `special_tokens_map.json` and `added_tokens.json` say the same.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::{
    bounds, guard::guarded, load::bad, normalize::Rules, origin::Origin, special::content,
};
use crate::Result;

const CONFIG: &str = "tokenizer_config.json";
const LISTED: &str = "added_tokens_decoder";
/// Names of special tokens that every tokenizer may have, in the order in which they are added.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
/// Lists of further special tokens; the first one that is not empty counts.
const EXTRAS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];
/// Names of a model's own.
const MODEL_SPECIFIC: &str = "model_specific_special_tokens";

/// A special token with its name, where it has one.
type Special = (Option<String>, AddedToken);

/// Tokens to add.
pub(super) struct AddedTokens {
    /// `tokenizer_config.json`.
    path: PathBuf,
    /// In order of their ids.
    listed: Vec<AddedToken>,
    /// By name, and without one.
    special: Vec<Special>,
}

impl AddedTokens {
    /// Reads them; `tokenizer` is what `tokenizer.json` holds.
    pub fn read(origin: Origin<'_>, tokenizer: &Value) -> Result<Self> {
        let path = origin.path_of(CONFIG);
        let mut config = fields(origin, CONFIG)?;
        let listed = match config.get(LISTED) {
            Some(Value::Object(tokens)) => {
                let special = special_tokens(&config);
                let tokens = tokens.iter();
                tokens
                    .map(|(id, token)| listed_token(id, token, &special))
                    .collect::<Result<_, _>>()
                    .map_err(|(id, reason)| bad(&path, format!("{LISTED}.{id}"), reason))?
            }
            None | Some(Value::Null) => legacy_tokens(origin, tokenizer, &mut config)?,
            Some(_) => return Err(bad(&path, LISTED, "not an object of ids and tokens")),
        };
        Ok(Self {
            path,
            listed: listed.into_values().collect(),
            special: special_tokens(&config),
        })
    }

    /// Checks all added tokens, those of `tokenizer.json` at `path` too, before they are normalised and searched for.
    pub fn check(&self, tokenizer: &Value, rules: &Rules, path: &Path) -> Result<()> {
        let own = own_tokens(tokenizer, &[]).map(|(_, token)| token);
        let own: Vec<AddedToken> = own.collect();
        let beside = self.listed.iter();
        let beside = beside.chain(self.special.iter().map(|(_, token)| token));
        check(own.iter(), rules).map_err(|reason| bad(path, "added_tokens", reason))?;
        check(beside, rules).map_err(|reason| bad(&self.path, LISTED, reason))
    }

    /// Adds them.
    pub fn add_to(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let mut tokens = self.listed.clone();
        let known = tokenizer.get_added_tokens_decoder();
        let known: HashSet<&str> = known
            .values()
            .chain(&tokens)
            .map(|token| token.content.as_str())
            .collect();
        let special: Vec<AddedToken> = self
            .special
            .iter()
            .filter(|(name, token)| {
                // An end of sequence that nothing knows is a mistake, of which reading it says more.
                let nowhere = name.as_deref() == Some("eos_token")
                    && tokenizer.token_to_id(&token.content).is_none();
                !known.contains(token.content.as_str()) && !nowhere
            })
            .map(|(_, token)| token.clone())
            .collect();
        tokens.extend(special);
        if tokens.is_empty() {
            return Ok(());
        }
        guarded(|| tokenizer.add_tokens(tokens).map_err(|e| e.to_string()))
            .map(|_| ())
            .map_err(|reason| bad(&self.path, LISTED, reason))
    }
}

fn check<'a>(
    tokens: impl Iterator<Item = &'a AddedToken> + Clone,
    rules: &Rules,
) -> Result<(), String> {
    bounds::check_added(tokens.clone().map(|token| token.content.as_str()))?;
    tokens
        .filter(|token| token.normalized)
        .try_for_each(|token| rules.check(&token.content))
}

/// A token of `added_tokens_decoder`; the error is its key and the reason.
fn listed_token(
    key: &str,
    token: &Value,
    special: &[Special],
) -> Result<(u32, AddedToken), (String, &'static str)> {
    let id = key.parse().map_err(|_| (key.to_owned(), "is not an id"))?;
    let token = token_of(token, special);
    let token = token.ok_or_else(|| (key.to_owned(), "not an object with a `content`"))?;
    Ok((id, token))
}

/// The older files: `special_tokens_map.json` goes over the configuration, `added_tokens.json` lists ids by content, and
/// tokens of `tokenizer.json` go over it.
fn legacy_tokens(
    origin: Origin<'_>,
    tokenizer: &Value,
    config: &mut Map<String, Value>,
) -> Result<BTreeMap<u32, AddedToken>> {
    for (name, value) in fields(origin, "special_tokens_map.json")? {
        config.insert(name, value);
    }
    let special = special_tokens(config);
    let mut listed = BTreeMap::new();
    let name = "added_tokens.json";
    for (content, id) in fields(origin, name)? {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| {
            let reason = format!("{id} is not an id");
            bad(&origin.path_of(name), content.clone(), reason)
        })?;
        let is_special = special.iter().any(|(_, token)| token.content == content);
        listed.insert(number, AddedToken::from(content, is_special));
    }
    listed.extend(own_tokens(tokenizer, &special));
    Ok(listed)
}

/// The added tokens of a `tokenizer.json` with their ids; what is not one is for the library to refuse.
fn own_tokens(tokenizer: &Value, special: &[Special]) -> impl Iterator<Item = (u32, AddedToken)> {
    let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
    tokens.into_iter().flatten().filter_map(|token| {
        let id = token.get("id").and_then(Value::as_u64)?;
        Some((u32::try_from(id).ok()?, token_of(token, special)?))
    })
}

/// Special tokens in the order in which they are added: those that every tokenizer may have, a model's own, extra ones.
fn special_tokens(config: &Map<String, Value>) -> Vec<Special> {
    let named = |(name, value): (&String, &Value)| {
        let content = content(value)?.to_owned();
        let mut token = AddedToken::from(content, true);
        set_flags(&mut token, value);
        token.special = true;
        Some((Some(name.clone()), token))
    };
    let standard = NAMES.iter().filter_map(|name| config.get_key_value(*name));
    let own = config
        .iter()
        .filter(|(name, _)| name.ends_with("_token") && !NAMES.contains(&name.as_str()));
    let objects = [EXTRAS[0], MODEL_SPECIFIC].into_iter();
    let objects = objects.filter_map(|field| config.get(field)?.as_object());
    let mut found: Vec<_> = standard
        .chain(own)
        .chain(objects.flatten())
        .filter_map(named)
        .collect();
    let extras = EXTRAS.iter().find_map(|field| {
        let tokens = config.get(*field)?.as_array()?;
        (!tokens.is_empty()).then_some(tokens)
    });
    let extras = extras.into_iter().flatten();
    found.extend(extras.filter_map(|token| Some((None, token_of(token, &[])?))));
    found
}

/// A token with its flags; one that has a name is special, whatever its flags say.
fn token_of(value: &Value, named: &[Special]) -> Option<AddedToken> {
    let content = content(value)?;
    let has_name = |(name, token): &Special| name.is_some() && token.content == content;
    let special = value.is_string()
        || value.get("special").and_then(Value::as_bool) == Some(true)
        || named.iter().any(has_name);
    let mut token = AddedToken::from(content, special);
    set_flags(&mut token, value);
    Some(token)
}

/// Sets what an object says; a token is normalised unless it is special, where it does not say.
fn set_flags(token: &mut AddedToken, value: &Value) {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let set = |name: &str| flag(name).unwrap_or(false);
    token.single_word = set("single_word");
    token.lstrip = set("lstrip");
    token.rstrip = set("rstrip");
    token.normalized = flag("normalized").unwrap_or(token.normalized);
}

fn fields(origin: Origin<'_>, name: &str) -> Result<Map<String, Value>> {
    match origin.json(name)? {
        Some((_, Value::Object(fields))) => Ok(fields),
        _ => Ok(Map::new()),
    }
}
