//! Provides the positions of two texts that belong together: what a record links, and the same number or name.

use std::{collections::HashMap, ops::Range};

/// Pairs of positions of one sequence that words may join; a text of numbers alone would join them all.
const EQUAL_MAX: usize = 1 << 18;

/// One side's positions and where they are in its text.
#[derive(Clone, Copy)]
pub(super) struct Positions<'a> {
    pub text: &'a str,
    /// Byte ranges of all tokens.
    pub ranges: &'a [(u32, u32)],
    /// The tokens that carry mass, increasing.
    pub tokens: &'a [usize],
}

/// Both sides.
pub(super) struct Joins<'a> {
    pub student: Positions<'a>,
    pub teacher: Positions<'a>,
}

impl Joins<'_> {
    /// `(i, j)` of all links, bytes of the student's text with bytes of the teacher's, in increasing order. A link of several
    /// tokens joins those that lie at the same share of it.
    pub fn by_links(&self, links: &[(Range<u32>, Range<u32>)]) -> Vec<(u32, u32)> {
        let mut joined = Vec::new();
        for (ours, theirs) in links {
            self.join(ours, theirs, &mut joined);
        }
        in_order(joined)
    }

    /// `(i, j)` whose tokens have a byte of the same number or name, in increasing order. A word that is there so often that
    /// it would join more than [`EQUAL_MAX`] positions joins none: it points nowhere.
    pub fn by_words(&self) -> Vec<(u32, u32)> {
        let mut theirs: HashMap<&str, Vec<Range<u32>>> = HashMap::new();
        for (word, range) in words(self.teacher.text) {
            theirs.entry(word).or_default().push(range);
        }
        let mut ours: HashMap<&str, Vec<Range<u32>>> = HashMap::new();
        for (word, range) in words(self.student.text) {
            if theirs.contains_key(word) {
                ours.entry(word).or_default().push(range);
            }
        }
        let mut found: Vec<(&str, Vec<Range<u32>>)> = ours.into_iter().collect();
        // Rare words first, and ties by the word: what is left out must not depend on a hash.
        let places = |word: &str, ours: usize| ours * theirs.get(word).map_or(0, Vec::len);
        found.sort_by_key(|(word, ours)| (places(word, ours.len()), *word));
        let mut joined = Vec::new();
        for (word, ours) in found {
            if joined.len() + places(word, ours.len()) > EQUAL_MAX {
                break;
            }
            for ours in &ours {
                for theirs in theirs.get(word).into_iter().flatten() {
                    self.join(ours, theirs, &mut joined);
                }
            }
        }
        in_order(joined)
    }

    fn join(&self, ours: &Range<u32>, theirs: &Range<u32>, joined: &mut Vec<(u32, u32)>) {
        let (rows, columns) = (
            self.student.overlapping(ours),
            self.teacher.overlapping(theirs),
        );
        let (n, m) = (rows.len(), columns.len());
        if m == 0 {
            return;
        }
        for a in 0..n {
            // The columns whose share of their part meets a's share of its part.
            let first = a * m / n;
            let last = ((a + 1) * m).div_ceil(n);
            for b in first..last {
                joined.push(((rows.start + a) as u32, (columns.start + b) as u32));
            }
        }
    }
}

impl Positions<'_> {
    /// The positions whose tokens have a byte of `part`.
    fn overlapping(&self, part: &Range<u32>) -> Range<usize> {
        let range = |t: &usize| self.ranges.get(*t).copied().unwrap_or_default();
        let first = self.tokens.partition_point(|t| range(t).1 <= part.start);
        let within = self.tokens.iter().skip(first);
        let count = within.take_while(|t| range(t).0 < part.end).count();
        first..first + count
    }
}

fn in_order(mut joined: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    joined.sort_unstable();
    joined.dedup();
    joined
}

/// Numbers, and words that begin with a capital and have another letter.
fn words(text: &str) -> Vec<(&str, Range<u32>)> {
    let kind = |c: char| match c {
        c if c.is_ascii_digit() => 1,
        c if c.is_alphabetic() => 2,
        _ => 0,
    };
    let mut words = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, first)) = chars.next() {
        let mut end = start + first.len_utf8();
        while let Some((at, c)) = chars.next_if(|(_, c)| kind(*c) == kind(first)) {
            end = at + c.len_utf8();
        }
        let word = &text[start..end];
        let is_name = first.is_uppercase() && word.chars().nth(1).is_some();
        if kind(first) == 1 || is_name {
            words.push((word, start as u32..end as u32));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a byte, all of them positions.
    fn bytes(text: &str) -> (Vec<(u32, u32)>, Vec<usize>) {
        let count = text.len() as u32;
        (
            (0..count).map(|b| (b, b + 1)).collect(),
            (0..text.len()).collect(),
        )
    }

    fn with<T>(student: &str, teacher: &str, ask: impl Fn(&Joins) -> T) -> T {
        let (ours, theirs) = (bytes(student), bytes(teacher));
        ask(&Joins {
            student: Positions {
                text: student,
                ranges: &ours.0,
                tokens: &ours.1,
            },
            teacher: Positions {
                text: teacher,
                ranges: &theirs.0,
                tokens: &theirs.1,
            },
        })
    }

    #[test]
    fn a_link_joins_the_same_shares_of_both_parts() {
        let by = |ours: Range<u32>, theirs: Range<u32>| {
            with("abcd", "uvwxyz", |joins| {
                joins.by_links(&[(ours.clone(), theirs.clone())])
            })
        };
        assert_eq!(by(1..2, 4..5), [(1, 4)]);
        assert_eq!(by(0..2, 0..4), [(0, 0), (0, 1), (1, 2), (1, 3)]);
        assert_eq!(by(0..3, 0..2), [(0, 0), (1, 0), (1, 1), (2, 1)]);
        assert_eq!(by(2..2, 0..2), []);
        // What carries no mass is joined to nothing.
        let none = with("ab", "ab", |joins| {
            let teacher = Positions {
                tokens: &[],
                ..joins.teacher
            };
            Joins {
                student: joins.student,
                teacher,
            }
            .by_links(&[(0..2, 0..2)])
        });
        assert_eq!(none, []);
    }

    #[test]
    fn numbers_and_names_join_and_little_words_do_not() {
        let joined = |a: &str, b: &str| with(a, b, |joins| joins.by_words());
        assert_eq!(joined("12 a", "a 12"), [(0, 2), (1, 3)]);
        assert_eq!(joined("Ann, I an", "an I Ann"), [(0, 5), (1, 6), (2, 7)]);
        assert_eq!(joined("3 a", "33 3"), [(0, 3)]);
        assert_eq!(joined("x1", "1é"), [(1, 0)]);
        assert_eq!(joined("", "1"), []);
    }

    #[test]
    fn a_word_that_is_everywhere_points_nowhere() {
        let text = "7 ".repeat(600) + "Ann";
        let joined = with(&text, &text, |joins| joins.by_words());
        let name = text.len() as u32 - 3;
        assert_eq!(joined, (name..name + 3).map(|b| (b, b)).collect::<Vec<_>>());
    }
}
