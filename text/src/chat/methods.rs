//! Provides the methods of Python's texts, lists and dictionaries, and the filters that write texts from values.

use minijinja::{
    Error, State, Value as Jinja,
    formatting::{FormatStyle, format},
    value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{
    filters::split_named,
    functions::{charged, wrong},
    python::{self, Bounded, too_long},
    spaces,
};
use crate::limits::RENDERING_BYTES_MAX;

/// `value.name(..)` where the engine itself has no such method.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Jinja,
    name: &str,
    arguments: &[Jinja],
) -> Result<Jinja, Error> {
    let Some(text) = value.as_str() else {
        return match (value.kind(), name) {
            (ValueKind::Map | ValueKind::Seq, "copy") => {
                from_args(arguments).map(|()| value.clone())
            }
            (ValueKind::Seq | ValueKind::Iterable, "index") => index(value, arguments),
            _ => unknown_method_callback(state, value, name, arguments),
        };
    };
    let found = match name {
        "join" => {
            let (values,): (&Jinja,) = from_args(arguments)?;
            join_texts(values, text, |item| match item.as_str() {
                Some(text) => Ok(text.to_owned()),
                None => Err(wrong("join: every item must be a text")),
            })?
        }
        "format" => formatted(FormatStyle::StrFormat, text, arguments)?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Jinja::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Jinja::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => partition(text, name == "rpartition", arguments)?,
        "split" | "rsplit" => {
            let (given, named) = split_named(arguments.to_vec())?;
            let (separator, most): (Option<Jinja>, Option<Jinja>) = from_args(&given)?;
            let separator = separator.or(named.get("sep")?).unwrap_or_default();
            let most = most.or(named.get("maxsplit")?).unwrap_or_default();
            named.assert_all_used()?;
            if name == "rsplit" {
                rsplit(text, &[separator, most])?
            } else if separator.as_str().is_some() {
                return unknown_method_callback(state, value, name, &[separator, most]);
            } else {
                let most = most.as_i64().and_then(|most| usize::try_from(most).ok());
                list(spaces::words(text, most.unwrap_or(usize::MAX)))
            }
        }
        "splitlines" => {
            let (keeps_ends, kwargs): (Option<bool>, Kwargs) = from_args(arguments)?;
            let keeps_ends = keeps_ends.or(kwargs.get("keepends")?);
            kwargs.assert_all_used()?;
            list(spaces::lines(text, keeps_ends.unwrap_or(false)))
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(arguments)?;
            Jinja::from(spaces::strip(text, name, chars))
        }
        "isspace" => {
            let () = from_args(arguments)?;
            Jinja::from(!text.is_empty() && text.chars().all(spaces::is_space))
        }
        "index" | "rindex" => {
            let find = name.replace("index", "find");
            let at = unknown_method_callback(state, value, &find, arguments)?;
            if at == Jinja::from(-1) {
                return Err(wrong("index: the text does not have this part"));
            }
            at
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            Jinja::from(text.chars().map(swapped).collect::<String>())
        }
        "casefold" => {
            let () = from_args(arguments)?;
            Jinja::from(text.to_lowercase())
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<&str>) = from_args(arguments)?;
            padded(text, name, width, fill.unwrap_or(" "))?
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let rest = padded(digits, "rjust", width.saturating_sub(sign.len()), "0")?;
            Jinja::from(format!("{sign}{rest}"))
        }
        _ => return unknown_method_callback(state, value, name, arguments),
    };
    charged(state, found)
}

/// `value | join(d='', attribute=None)`.
pub(super) fn join(
    state: &State<'_, '_>,
    value: &Jinja,
    separator: Option<&Jinja>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<Jinja, Error> {
    let named: Option<Jinja> = kwargs.get("d")?;
    let separator = separator.or(named.as_ref()).map(python::str).transpose()?;
    let attribute = match attribute {
        Some(name) => Some(name),
        None => kwargs.get("attribute")?,
    };
    kwargs.assert_all_used()?;
    let joined = join_texts(
        value,
        &separator.unwrap_or_default(),
        |item| match attribute {
            Some(name) => python::str(&item.get_attr(name)?),
            None => python::str(item),
        },
    )?;
    charged(state, joined)
}

fn join_texts(
    values: &Jinja,
    separator: &str,
    text: impl Fn(&Jinja) -> Result<String, Error>,
) -> Result<Jinja, Error> {
    let mut out = Bounded::default();
    for (index, item) in values.try_iter()?.checked().enumerate() {
        out.count_item()?;
        if index > 0 {
            out.push(separator)?;
        }
        out.push(&text(&item?)?)?;
    }
    Ok(Jinja::from(out.into_text()))
}

/// `text | format(..)`, Python's `text % (..)`.
pub(super) fn printf(
    state: &State<'_, '_>,
    text: &str,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Jinja, Error> {
    let written = formatted(FormatStyle::Printf, text, &arguments.into_values())?;
    charged(state, written)
}

/// `text % value`: a tuple holds the arguments, anything else is the only one.
pub(super) fn percent(state: &State<'_, '_>, text: &str, value: &Jinja) -> Result<Jinja, Error> {
    let arguments: Vec<Jinja> = match value.downcast_object_ref::<Tuple>() {
        Some(_) => value.try_iter()?.collect(),
        None => vec![value.clone()],
    };
    let written = charged(state, formatted(FormatStyle::Printf, text, &arguments)?)?;
    // Only a dictionary may have more than the text asks for.
    let fewer = arguments.split_last().map(|(_, fewer)| fewer);
    let fewer = fewer.filter(|_| value.kind() != ValueKind::Map);
    if fewer.is_some_and(|fewer| formatted(FormatStyle::Printf, text, fewer).is_ok()) {
        return Err(wrong(
            "%: the text has no place for all that is written into it",
        ));
    }
    Ok(written)
}

/// Writes arguments into a pattern whose widths and repetitions are bounded before anything is written.
fn formatted(style: FormatStyle, pattern: &str, arguments: &[Jinja]) -> Result<Jinja, Error> {
    let (sign, lists) = match style {
        FormatStyle::StrFormat => ('{', false),
        FormatStyle::Printf => ('%', true),
    };
    let mut printed = Vec::new();
    let mut longest = 0;
    for argument in arguments {
        let is_list = match argument.kind() {
            ValueKind::Seq | ValueKind::Iterable => true,
            // `%(name)s` takes from a dictionary.
            ValueKind::Map => !pattern.contains("%("),
            _ => false,
        };
        let argument = if is_list && lists {
            Jinja::from(python::str(argument)?)
        } else {
            argument.clone()
        };
        let length = match argument.as_str() {
            Some(text) => text.len(),
            None => python::str(&argument)?.len(),
        };
        longest = longest.max(length);
        printed.push(argument);
    }
    let fields = pattern.matches(sign).count();
    let mut bytes = pattern.len().saturating_add(fields.saturating_mul(longest));
    for field in pattern.split(sign).skip(1) {
        // Widths and precisions are all the numbers of a field; `*` takes one from the arguments.
        let field = field.split('}').next().unwrap_or_default();
        let numbers = field.split(|c: char| !c.is_ascii_digit());
        for number in numbers.filter(|number| !number.is_empty()) {
            bytes = bytes.saturating_add(number.parse().unwrap_or(usize::MAX));
        }
        if style == FormatStyle::Printf && field.contains('*') {
            let widths = printed.iter().filter_map(Jinja::as_usize);
            bytes = widths.fold(bytes, usize::saturating_add);
        }
    }
    if bytes > RENDERING_BYTES_MAX {
        return Err(too_long());
    }
    format(style, pattern, &printed).map(Jinja::from)
}

fn padded(text: &str, side: &str, width: usize, fill: &str) -> Result<Jinja, Error> {
    let missing = width.saturating_sub(text.chars().count());
    let before = match side {
        "rjust" => missing,
        "ljust" => 0,
        // As CPython rounds: an odd rest goes before the text where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let mut out = Bounded::default();
    out.repeat(fill, before)?;
    out.push(text)?;
    out.repeat(fill, missing - before)?;
    Ok(Jinja::from(out.into_text()))
}

/// `value | center(width=80)`.
pub(super) fn center(
    state: &State<'_, '_>,
    value: &Jinja,
    width: Option<usize>,
) -> Result<Jinja, Error> {
    let centred = padded(&python::str(value)?, "center", width.unwrap_or(80), " ")?;
    charged(state, centred)
}

fn partition(text: &str, from_end: bool, arguments: &[Jinja]) -> Result<Jinja, Error> {
    let (separator,): (&str,) = from_args(arguments)?;
    if separator.is_empty() {
        return Err(wrong("partition: the separator is empty"));
    }
    let halves = if from_end {
        text.rsplit_once(separator)
    } else {
        text.split_once(separator)
    };
    let parts = match halves {
        Some((before, after)) => [before, separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Jinja::from(Tuple::from(parts.map(Jinja::from))))
}

fn rsplit(text: &str, arguments: &[Jinja]) -> Result<Jinja, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
    let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(wrong("rsplit: the separator is empty")),
        Some(separator) => text.rsplitn(most.saturating_add(1), separator).collect(),
        None => spaces::words_from_end(text, most),
    };
    parts.reverse();
    Ok(list(parts))
}

fn list(parts: Vec<&str>) -> Jinja {
    parts.into_iter().map(Jinja::from).collect()
}

fn index(list: &Jinja, arguments: &[Jinja]) -> Result<Jinja, Error> {
    let (wanted,): (&Jinja,) = from_args(arguments)?;
    let at = list.try_iter()?.position(|item| item == *wanted);
    at.map(Jinja::from)
        .ok_or_else(|| wrong("index: the list does not have this value"))
}

fn swapped(character: char) -> String {
    if character.is_uppercase() {
        character.to_lowercase().collect()
    } else {
        character.to_uppercase().collect()
    }
}
