//! Provides `settings!`: one declaration that yields a TOML-readable struct, its defaults and the list behind its flags.

use std::path::PathBuf;

/// What a setting's value looks like on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An integer of at least zero.
    Integer,
    /// A number.
    Float,
    /// `true`, `false`, `on` or `off`; the flag alone means `true`.
    Boolean,
    /// Any text.
    Text,
    /// Comma-separated texts; the flag may be repeated.
    List,
}

/// One setting: its key in TOML, and what its flag says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Dotted path in TOML, e.g. `loss.kl_weight`; the flag is the last part with dashes.
    pub path: String,
    /// One line for `--help`.
    pub help: String,
    /// What a value looks like.
    pub kind: Kind,
}

impl Key {
    /// A key with everything it needs.
    pub fn new(path: impl Into<String>, help: impl AsRef<str>, kind: Kind) -> Self {
        let help = help.as_ref().trim().trim_end_matches('.').to_owned();
        Self {
            path: path.into(),
            help,
            kind,
        }
    }

    /// The flag without its dashes: `loss.kl_weight` gives `kl-weight`.
    pub fn flag(&self) -> String {
        let leaf = self.path.rsplit('.').next().unwrap_or(&self.path);
        leaf.replace('_', "-")
    }
}

/// A type that may stand behind a setting.
pub trait Setting {
    /// What its value looks like on the command line.
    const KIND: Kind;
}

macro_rules! setting_kinds {
    ($($kind:ident: $($ty:ty),+;)+) => { $($(
        impl $crate::config::settings::Setting for $ty {
            const KIND: $crate::config::settings::Kind = $crate::config::settings::Kind::$kind;
        }
    )+)+ };
}
pub(crate) use setting_kinds;

setting_kinds! {
    Integer: usize, u64, u32;
    Float: f64;
    Boolean: bool;
    Text: String, PathBuf, distill_text::ChatTemplateKwargs;
    List: Vec<String>, Vec<PathBuf>;
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;
}

/// A group of settings that one TOML file and one set of flags can fill.
pub trait Settings: Default + serde::Serialize + serde::de::DeserializeOwned {
    /// Every setting, in the order of the declaration.
    fn keys() -> Vec<Key>;
}

/// Declares a struct whose doc comments are the help of its flags and whose right-hand sides are its defaults.
///
/// `sections` name nested TOML tables with the function that lists their keys.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $ty:ty = $default:expr,)*
        }
        $(sections { $($(#[doc = $section_doc:literal])+ $section:ident: $section_ty:ty = $section_keys:path,)+ })?
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)*
            $($($(#[doc = $section_doc])+ pub $section: $section_ty,)+)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* $($($section: Default::default(),)+)? }
            }
        }

        impl $crate::config::settings::Settings for $name {
            fn keys() -> Vec<$crate::config::settings::Key> {
                use $crate::config::settings::{Key, Setting};
                #[allow(unused_mut)]
                let mut keys = vec![$(Key::new(
                    stringify!($field),
                    concat!($($doc),+),
                    <$ty as Setting>::KIND,
                ),)*];
                $($(keys.extend($section_keys().into_iter().map(|key| Key {
                    path: format!("{}.{}", stringify!($section), key.path),
                    ..key
                }));)+)?
                keys
            }
        }
    };
}
pub(crate) use settings;
