//! Provides addresses of object storage, told from paths of this machine.

use std::{env, io, path::Path, str::FromStr, sync::Arc, time::Duration};

use distill_program::FileError;
use object_store::{
    ObjectStore, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem,
    path::Path as Key,
};
use url::Url;

use crate::Result;

/// What stands between a scheme and the rest.
const MARK: &str = "://";
const SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];
/// How long a request is tried again while storage or the network to it is away: that ends before the attempts do.
pub(crate) const RETRY_TIME: Duration = Duration::from_secs(150);
const ATTEMPTS_MAX: usize = 10_000;
/// Where a server of S3's protocol is, if it is not Amazon's; the first that is set counts.
const ENDPOINTS: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

/// Whether `path` is an address of object storage, or meant to be one.
pub fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(|text| {
        let scheme = text.split_once(":/").map_or("", |(scheme, _)| scheme);
        text.contains(MARK) || SCHEMES.contains(&scheme)
    })
}

/// The server that an address is of, where it is not the one that its scheme says.
pub(crate) fn endpoint(path: &Path) -> Option<String> {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let is_s3 = path.to_str().is_some_and(|text| text.starts_with("s3:"));
    ENDPOINTS.into_iter().find_map(set).filter(|_| is_s3)
}

/// The service behind an address, and the place in it.
///
/// # Errors
/// `InvalidInput` where it is no address that is known, or has a secret in it; what the service's settings lack.
pub(crate) fn reach(path: &Path) -> Result<(Arc<dyn ObjectStore>, Key)> {
    let refuse = |reason: &str| {
        let shown = without_secret(path);
        FileError::at("use", Path::new(&shown))(io::Error::new(io::ErrorKind::InvalidInput, reason))
    };
    let text = path.to_str().unwrap_or_default();
    let scheme = text.split_once(MARK).map_or("", |(scheme, _)| scheme);
    if !SCHEMES.contains(&scheme) {
        return Err(refuse(
            "object storage is named s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER",
        ));
    }
    let url = Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(
            "an address holds no key; give it in the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("an address has no `?` and no `#`"));
    }
    if scheme == "file" && url.host_str().is_some_and(|host| !host.is_empty()) {
        return Err(refuse(
            "a folder is named with three slashes, file:///FOLDER",
        ));
    }
    if let Some(endpoint) = endpoint(path) {
        let is_usable = Url::parse(&endpoint).is_ok_and(|url| {
            let scheme = endpoint.split_once(MARK).map_or("", |(scheme, _)| scheme);
            url.has_host() && ["http", "https"].contains(&scheme)
        });
        if !is_usable {
            return Err(refuse(
                "AWS_ENDPOINT_URL names no server; it has to be https://HOST, or http://HOST without TLS",
            ));
        }
    }
    let (_, key) = ObjectStoreScheme::parse(&url).map_err(|error| refuse(&error.to_string()))?;
    let service = service(scheme, text).map_err(|error| refuse(&error.to_string()))?;
    Ok((service, key))
}

fn service(scheme: &str, address: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    // Whichever comes first; tonic and the hub's client name theirs themselves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig {
        retry_timeout: RETRY_TIME,
        max_retries: ATTEMPTS_MAX,
        ..RetryConfig::default()
    };
    Ok(match scheme {
        "s3" => {
            let mut builder = AmazonS3Builder::new();
            for (name, value) in env::vars_os() {
                let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                    continue;
                };
                // What is set to nothing is not set.
                let key = AmazonS3ConfigKey::from_str(&name.to_ascii_lowercase());
                if let (Ok(key), true, false) = (key, name.starts_with("AWS_"), value.is_empty()) {
                    builder = builder.with_config(key, value);
                }
            }
            let mut builder = builder.with_url(address).with_retry(retry);
            if let Some(endpoint) = endpoint(Path::new(address)) {
                // A server of one's own without TLS is named as such; nothing else is spoken to without.
                let is_plain = endpoint.starts_with("http:");
                builder = builder.with_endpoint(endpoint).with_allow_http(is_plain);
            }
            Arc::new(builder.build()?)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(address);
            Arc::new(builder.with_retry(retry).build()?)
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(address);
            Arc::new(builder.with_retry(retry).build()?)
        }
        _ => Arc::new(LocalFileSystem::new().with_fsync(true)),
    })
}

/// The address without what stands before `@` or behind `?`. A key of Amazon's may have slashes.
fn without_secret(path: &Path) -> String {
    let text = path.to_string_lossy();
    let Some((scheme, rest)) = text.split_once(MARK) else {
        return text.into_owned();
    };
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}{MARK}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths_and_what_is_wrong_with_one_is_said() {
        for path in ["cache", "/a/b", "org/name", "c:/d", "a/s3:/bucket"] {
            assert!(!is_remote(Path::new(path)), "{path}");
        }
        for (address, reason) in [
            ("http://host/cache", "s3://BUCKET/PREFIX"),
            ("s3://key:secret@bucket/cache", "AWS_ACCESS_KEY_ID"),
            ("s3://key:secret/secret@bucket/cache", "s3://bucket/cache"),
            ("s3://bucket/cache?X-Amz-Signature=secret", "no `?`"),
            ("s3:/bucket/cache", "s3://BUCKET/PREFIX"),
            ("S3://bucket/cache", "s3://BUCKET/PREFIX"),
            ("file://folder/cache", "three slashes"),
            ("s3:///cache", "s3:///cache"),
        ] {
            assert!(is_remote(Path::new(address)), "{address}");
            let error = reach(Path::new(address)).unwrap_err().to_string();
            assert!(error.contains(reason), "{address}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let (_, key) = reach(Path::new("file:///tmp/a b/c")).unwrap();
        assert_eq!(key.as_ref(), "tmp/a b/c");
    }
}
