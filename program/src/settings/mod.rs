/*! Provides settings, each declared once: its key in a TOML file, its flag, default, help, limits and what it needs.

```text
 settings! { pub struct Config { ... } } ──> Config: its fields and defaults
                     │                └────> keys: flags, help in groups, what a file may hold
                     │
 command line ──> Flags ──┐
 file ────────────────────┼──> resolve ──> Config ──> check_limits, the program's own checks ──> a run
 presets ─────────────────┘        └─────> what was set and has no effect
```

What goes on over several runs of a program, a capture or a training run, is bound to some of its settings. Which ones, every
declaration has to say; fingerprints, comparisons and refusals follow from that.
*/

mod declare;
mod flags;
mod key;
mod needs;
mod resolve;
mod words;

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use toml::Table;

use crate::FileError;
pub use flags::{FileFlags, Flags, with_brief_help, with_flags};
pub(crate) use key::flag_of;
pub use key::{Key, Kind, Setting, grouped, limits, section, show, with_defaults};
pub use needs::{Is, Need, number};
pub use resolve::{FILE_BYTES_MAX, Resolved, Scheme, insert, lookup, overlay, resolve};
pub use words::words;

/// Settings by name.
pub trait Keys {
    /// Every setting, in the order of the declaration.
    fn keys() -> Vec<Key>;
}

/// A group of settings that one TOML file and one set of flags can fill.
pub trait Settings: Keys + Default + Serialize + DeserializeOwned {}

impl<T: Keys + Default + Serialize + DeserializeOwned> Settings for T {}

/// Settings that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is outside its meaning.
    #[error("{path}: {reason}")]
    Key {
        /// Its key.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
}

impl Error {
    /// About the setting with this key.
    pub fn key(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Key {
            path: path.into(),
            reason: reason.into(),
        }
    }

    fn file(file: &Path, reason: impl Into<String>) -> Self {
        Self::File {
            file: file.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Settings as a TOML table.
///
/// # Errors
/// A value that TOML has no word for.
pub fn table(settings: &impl Serialize) -> Result<Table, Error> {
    Table::try_from(settings).map_err(|e| Error::key("configuration", e.to_string()))
}

/// Refuses a number, or a number of things, outside the limits that are declared for it.
///
/// # Errors
/// The first of them, by key.
pub fn check_limits<C: Settings>(settings: &C) -> Result<(), Error> {
    let values = table(settings)?;
    for key in C::keys() {
        let value = lookup(&values, &key.path);
        value.map_or(Ok(()), |value| key.check_limits(value))?;
    }
    Ok(())
}
