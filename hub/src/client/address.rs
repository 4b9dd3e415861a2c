//! Provides what an address says: whose it is, where a redirect leads, and what of it may be shown.

/// `scheme://host:port`.
fn origin(url: &str) -> Option<&str> {
    let host = url.find("://")? + 3;
    let end = url
        .get(host..)?
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| host + at);
    url.get(..end)
}

/// Whether two addresses are of one server, so that what is meant for one may go to the other.
pub(crate) fn same_origin(url: &str, other: &str) -> bool {
    matches!((origin(url), origin(other)), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
}

/// The address that a redirect from `url` names; never one without encryption from one with it.
pub(crate) fn absolute(location: &str, url: &str) -> Option<String> {
    if location.starts_with("https://")
        || (location.starts_with("http://") && url.starts_with("http://"))
    {
        return Some(location.to_owned());
    }
    let path = location.starts_with('/') && !location.starts_with("//");
    path.then(|| origin(url).map(|origin| format!("{origin}{location}")))?
}

/// An address without its query, which may hold a signature.
pub(super) fn bare(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_never_lose_encryption() {
        let hub = "https://hub.example/a/b?x=1";
        for (location, expected) in [
            ("/c/d", Some("https://hub.example/c/d")),
            ("https://cdn.example/x", Some("https://cdn.example/x")),
            ("http://cdn.example/x", None),
            ("//cdn.example/x", None),
            ("c/d", None),
            ("", None),
        ] {
            assert_eq!(absolute(location, hub).as_deref(), expected, "{location}");
        }
        assert_eq!(
            absolute("http://c/x", "http://a/b").as_deref(),
            Some("http://c/x")
        );
    }

    #[test]
    fn the_token_stays_with_its_origin() {
        let hub = "https://hub.example";
        assert!(same_origin("https://HUB.example/x", hub));
        for other in [
            "https://hub.example.evil/x",
            "http://hub.example/x",
            "https://hub.example:444/x",
            "x",
        ] {
            assert!(!same_origin(other, hub), "{other}");
        }
        assert_eq!(bare("https://cdn/x?Signature=secret"), "https://cdn/x");
    }
}
