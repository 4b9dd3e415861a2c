//! Provides where the cache is, which hub is asked and as whom: the variables that `huggingface_hub` reads.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use distill_program::files;

use crate::{Error, Result, limits::TOKEN_BYTES_MAX};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A user's access token, which no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as written, white space around it dropped; `None` where nothing else is there.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The value of the `Authorization` header.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Where and how repositories are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Directory of `models--org--name` directories.
    pub cache: PathBuf,
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Who is asking.
    pub token: Option<Token>,
    /// Where a token is read from, for messages.
    pub token_file: PathBuf,
    /// PEM file with the authorities that certificates must come from, instead of the public ones.
    pub authorities: Option<PathBuf>,
    /// Use the cache alone.
    pub offline: bool,
    /// Wait before the second of several attempts; doubled before each one after it.
    pub retry_wait: Duration,
}

impl Environment {
    /// Reads `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `SSL_CERT_FILE`
    /// and what stands in for them, as `huggingface_hub` does.
    ///
    /// # Errors
    /// A variable without meaning, or a token file that cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| env::var_os(name))
    }

    /// As [`Environment::from_env`], from any source of variables.
    ///
    /// # Errors
    /// As [`Environment::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user = get("HOME").map(PathBuf::from);
        let path =
            |name: &str| get(name).map(|value| expand(PathBuf::from(value), user.as_deref()));
        let home = match (path("HF_HOME"), path("XDG_CACHE_HOME"), &user) {
            (Some(home), _, _) => home,
            (None, Some(cache), _) => cache.join("huggingface"),
            (None, None, Some(user)) => user.join(".cache/huggingface"),
            (None, None, None) => {
                return Err(Error::Environment {
                    variable: "HF_HOME",
                    reason: "neither HF_HOME nor HOME is set, so there is no place for the hub's cache; set HF_HOME".into(),
                });
            }
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let text = |name: &str| get(name).map(|value| value.to_string_lossy().into_owned());
        let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = match given.as_deref().and_then(Token::new) {
            Some(token) => Some(token),
            None => read_token(&token_file)?,
        };
        let offline = text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE"));
        Ok(Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint(text("HF_ENDPOINT"))?,
            token,
            token_file,
            authorities: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            offline: offline.is_some_and(|value| is_true(&value)),
            retry_wait: Duration::from_secs(1),
        })
    }

    /// Where a token is looked for, for messages.
    pub(crate) fn token_place(&self) -> String {
        format!("HF_TOKEN or {}", self.token_file.display())
    }
}

/// `~/x` as a path of the user's.
fn expand(path: PathBuf, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

fn endpoint(given: Option<String>) -> Result<String> {
    let endpoint = given.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let host = ["https://", "http://"]
        .iter()
        .find_map(|scheme| endpoint.strip_prefix(scheme));
    let has_secret = |host: &str| {
        host.split('/')
            .next()
            .is_some_and(|host| host.contains('@'))
    };
    match host {
        // It would be in every message that names the hub.
        Some(host) if has_secret(host) => Err(Error::Environment {
            variable: "HF_ENDPOINT",
            reason: "has a user or a password before its host; give a token in HF_TOKEN instead"
                .to_owned(),
        }),
        Some(host) if !host.is_empty() => Ok(endpoint),
        _ => Err(Error::Environment {
            variable: "HF_ENDPOINT",
            reason: format!(
                "`{endpoint}` is no address; one reads https://HOST or http://HOST:PORT"
            ),
        }),
    }
}

fn read_token(path: &Path) -> Result<Option<Token>> {
    let text = files::if_there(files::read_text(path, TOKEN_BYTES_MAX))
        .map_err(|error| error.during("read the hub's token in"))?;
    Ok(text.and_then(|text| Token::new(&text)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Environment> {
        Environment::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, cache) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (
                &[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")],
                "/c/huggingface/hub",
            ),
            (
                &[
                    ("HOME", "/u"),
                    ("HF_HOME", "~/hf"),
                    ("XDG_CACHE_HOME", "/c"),
                ],
                "/u/hf/hub",
            ),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/x")], "/x"),
            (
                &[
                    ("HF_HOME", "/h"),
                    ("HUGGINGFACE_HUB_CACHE", "/y"),
                    ("HF_HUB_CACHE", ""),
                ],
                "/y",
            ),
        ] {
            assert_eq!(environment(variables).unwrap().cache, Path::new(cache));
        }
        let error = environment(&[]).unwrap_err().to_string();
        assert!(error.contains("set HF_HOME"), "{error}");
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file_and_is_never_shown() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_from_file\n").unwrap();
        let path = home.path().to_str().unwrap();
        let from_file = environment(&[("HF_HOME", path)]).unwrap();
        assert_eq!(from_file.token, Token::new("hf_from_file"));
        let given = environment(&[("HF_HOME", path), ("HF_TOKEN", " hf_given ")]).unwrap();
        assert_eq!(
            given.token.as_ref().unwrap().authorization(),
            "Bearer hf_given"
        );
        assert!(!format!("{given:?}").contains("hf_given"));
    }

    #[test]
    fn the_endpoint_is_an_address_and_offline_a_switch() {
        let home = ("HF_HOME", "/h");
        assert_eq!(environment(&[home]).unwrap().endpoint, DEFAULT_ENDPOINT);
        let mirror = environment(&[home, ("HF_ENDPOINT", "http://127.0.0.1:9/")]).unwrap();
        assert_eq!(mirror.endpoint, "http://127.0.0.1:9");
        let error = environment(&[home, ("HF_ENDPOINT", "mirror")])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("HF_ENDPOINT: `mirror`"), "{error}");
        let secret = environment(&[home, ("HF_ENDPOINT", "https://me:password@hub")]);
        let error = secret.unwrap_err().to_string();
        assert!(
            error.contains("HF_TOKEN") && !error.contains("password@"),
            "{error}"
        );
        for (value, offline) in [("1", true), ("yes", true), ("0", false), ("", false)] {
            let environment = environment(&[home, ("HF_HUB_OFFLINE", value)]).unwrap();
            assert_eq!(environment.offline, offline, "{value:?}");
        }
        assert!(
            environment(&[home, ("TRANSFORMERS_OFFLINE", "1")])
                .unwrap()
                .offline
        );
    }
}
