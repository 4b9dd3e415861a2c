//! Provides texts beside each other on a terminal.

use distill_program::console::columns_of;

/// Between the columns.
const GAP: &str = " │ ";
/// Columns of a terminal that a text has at least; with fewer, texts stand one after the other.
const COLUMNS_MIN: usize = 18;

/// Texts under their titles: beside each other on a terminal of so many columns that has room for all, else one after the other.
pub(super) fn beside(texts: &[(&str, &str)], columns: Option<usize>) -> String {
    let gaps = columns_of(GAP) * texts.len().saturating_sub(1);
    let width = columns.map(|columns| columns.saturating_sub(gaps) / texts.len().max(1));
    let Some(width) = width.filter(|width| *width >= COLUMNS_MIN) else {
        let block = |(title, text): &(&str, &str)| format!("[{title}]\n{}\n", text.trim_end());
        return texts.iter().map(block).collect();
    };
    let lines = |(title, text): &(&str, &str)| {
        let mut lines = vec![(*title).to_owned(), "─".repeat(width)];
        lines.extend(text.trim_end().lines().flat_map(|line| wrap(line, width)));
        lines
    };
    let texts: Vec<Vec<String>> = texts.iter().map(lines).collect();
    let mut out = String::new();
    for row in 0..texts.iter().map(Vec::len).max().unwrap_or_default() {
        let cells = texts.iter().map(|lines| {
            let cell = lines.get(row).map_or("", String::as_str);
            let padding = width.saturating_sub(columns_of(cell));
            format!("{cell}{}", " ".repeat(padding))
        });
        out += cells.collect::<Vec<_>>().join(GAP).trim_end();
        out.push('\n');
    }
    out
}

/// A line in pieces of at most `width` columns, between words where it can.
fn wrap(line: &str, width: usize) -> Vec<String> {
    // What moves the cursor would break the columns.
    let clean = |c: char| if c == '\t' { ' ' } else { c };
    let line: String = line
        .chars()
        .map(clean)
        .filter(|c| !c.is_control())
        .collect();
    let mut pieces = vec![String::new()];
    for word in line.split_inclusive(' ') {
        let last = pieces.last().map_or(0, |piece| columns_of(piece));
        if last > 0 && last + columns_of(word.trim_end()) > width {
            pieces.push(String::new());
        }
        for letter in word.chars() {
            let mut buffer = [0; 4];
            let letter = letter.encode_utf8(&mut buffer);
            let used = pieces.last().map_or(0, |piece| columns_of(piece));
            if used > 0 && used + columns_of(letter) > width && letter != " " {
                pieces.push(String::new());
            }
            if let Some(piece) = pieces.last_mut() {
                piece.push_str(letter);
            }
        }
    }
    pieces
        .iter()
        .map(|piece| piece.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_beside_each_other_where_there_is_room() {
        let texts = [
            ("base", "one two three four five six\n\nseven"),
            ("adapter", "你好世界你好世界你好世界"),
        ];
        let blocks =
            "[base]\none two three four five six\n\nseven\n[adapter]\n你好世界你好世界你好世界\n";
        assert_eq!(beside(&texts, None), blocks);
        assert_eq!(beside(&texts, Some(20)), blocks);
        let text = beside(&texts, Some(43));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines.iter().all(|line| columns_of(line) <= 43), "{text}");
        assert_eq!(lines[2], "one two three four   │ 你好世界你好世界你好");
        assert_eq!(lines[3], "five six             │ 世界");
        assert_eq!(lines[5], "seven                │");
    }

    #[test]
    fn three_texts_stand_beside_each_other_too() {
        let texts = [
            ("base", "one"),
            ("adapter", "two"),
            ("teacher", "three\nfour"),
        ];
        let text = beside(&texts, Some(60));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[2..],
            [
                "one                │ two                │ three",
                "                   │                    │ four"
            ]
        );
        assert!(lines.iter().all(|line| columns_of(line) <= 60), "{text}");
        let blocks = "[base]\none\n[adapter]\ntwo\n[teacher]\nthree\nfour\n";
        assert_eq!(beside(&texts, Some(59)), blocks);
    }

    #[test]
    fn a_word_longer_than_a_column_is_divided_and_nothing_is_lost() {
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("a\tb\u{1b}[31mc", 9), ["a b[31mc"]);
    }
}
