//! Provides `settings!`: one declaration that yields a TOML-readable struct, its defaults and the list behind its flags.

/// Declares a struct whose doc comments are the help of its flags and whose right-hand sides are its defaults. The first
/// paragraph of a comment is one line, which is all that `-h` shows of a setting that says `essential: true`; the others are for
/// `--help`. `group "Name":` before a comment begins a group of the help: it is the heading of this setting and those after it.
///
/// After the struct's name stands what is bound to the settings: `capture`, `run`, or `once` where nothing goes on. Every
/// setting of a capture says `changes_bytes: yes` or `no`, and every setting of a run `may_resume: yes` or `no`; one that
/// does not is not compiled:
///
/// ```compile_fail
/// distill_program::settings! {
///     /// Everything.
///     pub struct Forgetful: capture {
///         /// Tokens in a window.
///         seq_len: usize = 512;
///     }
/// }
/// ```
///
/// ```
/// distill_program::settings! {
///     /// Everything.
///     pub struct Complete: capture {
///         /// Tokens in a window.
///         seq_len: usize = 512, changes_bytes: yes, limits: 8..;
///     }
/// }
/// ```
///
/// Then may follow, in this order: `limits` of a number or of how many there are, `needs` (what else must hold for the
/// setting to have an effect), `value` (what stands for one in the help), `alias` (another name of the flag), `shown`
/// (what the help says of the default, where that follows from other settings) and `essential`. A type that is no plain
/// number, text or path says what its value looks like: `dtype: Dtype as Text`; where it is one of a few words, the help
/// lists them.
///
/// `beside` names fields that are no settings; `sections` name nested TOML tables with the function that lists their keys.
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident: $bound:ident {
            $($(group $group:literal:)? $(#[doc = $doc:literal])+ $field:ident: $ty:ty $(as $kind:ident)? = $default:expr
                $(, changes_bytes: $bytes:ident)?
                $(, may_resume: $resume:ident)?
                $(, limits: $limits:expr)?
                $(, needs: [$($need:expr),+])?
                $(, value: $value:literal)?
                $(, alias: $alias:literal)?
                $(, shown: $shown:expr)?
                $(, essential: $essential:literal)?
            ;)*
        }
        $(beside { $($(#[doc = $beside_doc:literal])+ $beside:ident: $beside_ty:ty = $beside_default:expr;)+ })?
        $(sections { $($(#[doc = $section_doc:literal])+ $section:ident: $section_ty:ty = $section_keys:path
            $(, may_resume: $section_resume:ident)?;)+ })?
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)*
            $($($(#[doc = $beside_doc])+ #[serde(skip)] pub $beside: $beside_ty,)+)?
            $($($(#[doc = $section_doc])+ pub $section: $section_ty,)+)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($($beside: $beside_default,)+)?
                    $($($section: Default::default(),)+)?
                }
            }
        }

        impl $crate::settings::Keys for $name {
            fn keys() -> Vec<$crate::settings::Key> {
                use $crate::settings::Key;
                #[allow(unused_mut)]
                let mut keys = vec![$({
                    let kind = $crate::settings_kind!($ty $(, $kind)?);
                    let key = Key {
                        is_bound: $crate::settings_bound!($bound $(, changes_bytes: $bytes)? $(, may_resume: $resume)?),
                        ..Key::new(stringify!($field), concat!($($doc, "\n"),+), kind).of::<$ty>()
                    };
                    $(let key = Key { group: Some($group), ..key };)?
                    $(let key = Key { limits: Some($crate::settings::limits($limits)), ..key };)?
                    $(let key = Key { needs: vec![$($need),+], ..key };)?
                    $(let key = Key { value_name: Some($value), ..key };)?
                    $(let key = Key { alias: Some($alias), ..key };)?
                    $(let key = Key { default: $shown, ..key };)?
                    $(let key = Key { is_essential: $essential, ..key };)?
                    key
                },)*];
                $($(keys.extend($crate::settings::section(
                    stringify!($section),
                    $section_keys(),
                    $crate::settings_bound!($bound $(, may_resume: $section_resume)?),
                ));)+)?
                $crate::settings::with_defaults($crate::settings::grouped(keys), &Self::default())
            }
        }
    };
}

/// What a setting looks like: what is declared, or what its type says.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_kind {
    ($ty:ty) => {
        <$ty as $crate::settings::Setting>::KIND
    };
    ($ty:ty, $kind:ident) => {
        $crate::settings::Kind::$kind
    };
}

/// Whether what goes on is bound to a setting.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_bound {
    (once) => {
        false
    };
    (capture, changes_bytes: yes) => {
        true
    };
    (capture, changes_bytes: no) => {
        false
    };
    (run, may_resume: yes) => {
        false
    };
    (run, may_resume: no) => {
        true
    };
    (capture $($other:tt)*) => {
        compile_error!("a setting of a capture says `changes_bytes: yes` or `changes_bytes: no`")
    };
    (run $($other:tt)*) => {
        compile_error!("a setting of a run says `may_resume: yes` or `may_resume: no`")
    };
    (once $($other:tt)*) => {
        compile_error!("nothing goes on that a setting of `once` could be bound to")
    };
}
