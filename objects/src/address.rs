//! Provides addresses of object storage, told from paths of this machine.

use std::{io, path::Path, sync::Arc, time::Duration};

use distill_program::FileError;
use object_store::{
    ObjectStore, ObjectStoreScheme, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, local::LocalFileSystem,
    path::Path as Key,
};
use url::Url;

use crate::Result;

/// What stands between a scheme and the rest.
const MARK: &str = "://";
const SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];
/// How long a request is tried again while storage or the network to it is away.
const RETRY_TIME: Duration = Duration::from_secs(150);

/// Whether `path` is an address of object storage, or meant to be one.
pub fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(MARK))
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
    let (_, key) = ObjectStoreScheme::parse(&url).map_err(|error| refuse(&error.to_string()))?;
    let service = service(scheme, text).map_err(|error| refuse(&error.to_string()))?;
    Ok((service, key))
}

fn service(scheme: &str, address: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    // Whichever comes first; tonic and the hub's client name theirs themselves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig {
        retry_timeout: RETRY_TIME,
        max_retries: usize::MAX,
        ..RetryConfig::default()
    };
    Ok(match scheme {
        "s3" => {
            let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
            let plain = |name| std::env::var(name).is_ok_and(|value| value.starts_with("http:"));
            let builder = AmazonS3Builder::from_env()
                .with_url(address)
                .with_retry(retry);
            // A server of one's own without TLS is named as such; nothing else is spoken to without.
            let builder = match endpoint.into_iter().any(plain) {
                true => builder.with_allow_http(true),
                false => builder,
            };
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

/// The address without what stands before `@`.
fn without_secret(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.split_once(MARK) {
        Some((scheme, rest)) => {
            let host = rest.split('/').next().unwrap_or_default();
            let rest = match host.rsplit_once('@') {
                Some((secret, _)) => rest.get(secret.len()..).unwrap_or_default(),
                None => rest,
            };
            format!("{scheme}{MARK}{rest}")
        }
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths_and_what_is_wrong_with_one_is_said() {
        for path in ["cache", "/a/b", "org/name", "c:/d", "s3:/bucket"] {
            assert!(!is_remote(Path::new(path)), "{path}");
        }
        for (address, reason) in [
            ("http://host/cache", "s3://BUCKET/PREFIX"),
            ("s3://key:secret@bucket/cache", "AWS_ACCESS_KEY_ID"),
            ("s3://bucket/cache?versionId=1", "no `?`"),
            ("file://folder/cache", "three slashes"),
            ("s3:///cache", "s3:///cache"),
        ] {
            assert!(is_remote(Path::new(address)), "{address}");
            let error = reach(Path::new(address)).unwrap_err().to_string();
            assert!(error.contains(reason), "{address}: {error}");
            assert!(!error.contains("secret@"), "{error}");
        }
        let (_, key) = reach(Path::new("file:///tmp/a b/c")).unwrap();
        assert_eq!(key.as_ref(), "tmp/a b/c");
    }
}
