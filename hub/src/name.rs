//! Provides names on the hub: `org/name`, with a revision or a file where wanted.

use std::fmt;

/// What a revision is where none is named, as in `huggingface_hub`.
const DEFAULT_REVISION: &str = "main";
/// Longest organisation, name or file name.
const PART_BYTES_MAX: usize = 96;
/// Longest revision.
const REVISION_BYTES_MAX: usize = 255;
/// Hexadecimal digits of a full commit id.
const COMMIT_DIGITS: usize = 40;

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit; `None` for the default branch.
    pub revision: Option<String>,
    /// One GGUF file of the repository.
    pub file: Option<String>,
}

impl Reference {
    /// Reads `org/name[/file.gguf][@revision]`; `None` where it is none of these.
    ///
    /// The parts become parts of paths and addresses, so only the hub's own characters pass: letters, digits, `-`, `_`,
    /// `.`, no part that begins or ends with a dash or dot, and neither `--` nor `..` anywhere.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let mut parts = name.split('/');
        let (org, model, file) = (parts.next()?, parts.next()?, parts.next());
        let fine = parts.next().is_none()
            && is_part(org)
            && is_part(model)
            && file.is_none_or(|file| is_file_name(file) && file.ends_with(".gguf"))
            && revision.is_none_or(is_revision);
        fine.then(|| Self {
            repo: format!("{org}/{model}"),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// The revision asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

fn is_part(part: &str) -> bool {
    is_file_name(part) && !part.contains("--") && !part.starts_with('-') && !part.ends_with('-')
}

/// A plain name of a file that the hub may have, and that is safe to join to a directory.
pub(crate) fn is_file_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=PART_BYTES_MAX).contains(&name.len())
        && name.bytes().all(fine)
        && !name.contains("..")
        && !name.starts_with('.')
        && !name.ends_with('.')
}

fn is_revision(revision: &str) -> bool {
    revision.len() <= REVISION_BYTES_MAX && revision.split('/').all(is_file_name)
}

/// Whether this is a full commit id, which can never mean anything else later.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_DIGITS && is_lower_hex(revision)
}

/// Whether these are hexadecimal digits as digests are written.
pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_revision_and_file() {
        let reference = |repo: &str, revision: Option<&str>, file: Option<&str>| {
            Some(Reference {
                repo: repo.to_owned(),
                revision: revision.map(str::to_owned),
                file: file.map(str::to_owned),
            })
        };
        for (text, expected) in [
            (
                "Qwen/Qwen2.5-0.5B",
                reference("Qwen/Qwen2.5-0.5B", None, None),
            ),
            ("a/b@v1.0", reference("a/b", Some("v1.0"), None)),
            ("a/b@refs/pr/3", reference("a/b", Some("refs/pr/3"), None)),
            (
                "a/b-GGUF/b-q4_k_m.gguf@main",
                reference("a/b-GGUF", Some("main"), Some("b-q4_k_m.gguf")),
            ),
        ] {
            let parsed = Reference::parse(text);
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(parsed.unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_leave_the_cache_is_no_name() {
        for text in [
            "",
            "model",
            "./model",
            "../model",
            "/a/b",
            "a/b/c",
            "a//b",
            "a/b@",
            "a/..",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/",
            "a/b@a..b",
            "a/b c",
            "a/b\0",
            "a--b/c",
            "-a/b",
            "a/b.",
            "a/b/../x.gguf",
            "a/b@x@y",
            "a/b?x",
            "ä/b",
            "~/model",
        ] {
            assert_eq!(Reference::parse(text), None, "{text:?}");
        }
        assert_eq!(Reference::parse(&format!("a/{}", "b".repeat(97))), None);
    }
}
