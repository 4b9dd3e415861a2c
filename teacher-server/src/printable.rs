//! Provides what is shown of a text from outside: in a log, in a terminal, in a message to others.

/// The first `chars_max` characters of `text` that are letters or digits of any script, or printable ASCII. What moves a cursor,
/// colours a terminal, turns the direction of writing or takes no room is left out.
pub fn printable(text: &str, chars_max: usize) -> String {
    let shown =
        |c: &char| *c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric());
    text.chars().filter(shown).take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor_turn_the_writing_or_hide() {
        for (text, shown) in [
            ("student-trainer 7 (run)", "student-trainer 7 (run)"),
            ("运行 é ß ش", "运行 é ß ش"),
            ("a\u{1b}[2Jb\u{7}\r\n\tc\u{9b}d\u{85}\0", "a[2Jbcd"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}e\u{2029}f", "abcdef"),
            ("a\u{200b}b\u{feff}c\u{ad}d\u{e0041}e\u{2060}", "abcde"),
            ("", ""),
        ] {
            assert_eq!(printable(text, 64), shown);
        }
        assert_eq!(printable(&"é".repeat(100), 64).chars().count(), 64);
        assert_eq!(printable(&"\n".repeat(1 << 20), 64), "");
    }
}
