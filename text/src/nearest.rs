//! Provides the nearest known name to one that is not known, for messages about settings.

/// The known name with the fewest edits to `name`; among equals the first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .min_by_key(|candidate| strsim::levenshtein(name, candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_nearest() {
        let known = ["lr", "lora_rank", "lora_alpha"];
        assert_eq!(nearest("lora_rnak", known), Some("lora_rank"));
        assert_eq!(nearest("x", []), None);
    }
}
