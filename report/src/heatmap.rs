//! Provides matrices over the tokens of two sides, such as transport plans, as heat maps in SVG with the tokens on the axes.

use std::fmt::Write;

use crate::escape;

/// Side of a cell in pixels; with many positions cells shrink, so that two maps stand side by side, but not below what a token's
/// line of text takes.
const CELL_MAX: usize = 15;
const CELL_MIN: usize = 12;
const MAP_MAX: usize = 512;
/// Room for the tokens at the left and at the top.
const LABELS: usize = 66;
/// Positions of a side that are drawn; more are cut.
const POSITIONS_MAX: usize = 64;
/// Share of a row's mass below which a cell stays empty.
const SHARE_MIN: f32 = 0.02;

/// A matrix with what its rows and columns stand for.
#[derive(Clone, Copy, Debug)]
pub struct HeatMap<'a> {
    /// Tokens at the left.
    pub rows: &'a [String],
    /// Tokens at the top.
    pub columns: &'a [String],
    /// Masses, row by row: the darker a cell, the more of its row is there.
    pub cells: &'a [Vec<f32>],
    /// Cells with a frame around them, row and column.
    pub marked: &'a [(usize, usize)],
}

impl HeatMap<'_> {
    /// The map as SVG.
    pub fn draw(&self) -> String {
        let (n, m) = (
            self.rows.len().min(POSITIONS_MAX),
            self.columns.len().min(POSITIONS_MAX),
        );
        let cell = (MAP_MAX / n.max(m).max(1)).clamp(CELL_MIN, CELL_MAX);
        let (width, height) = (LABELS + m * cell, LABELS + n * cell);
        let mut svg = format!(
            "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\">"
        );
        let place = |i: usize| LABELS + i * cell;
        let (middle, edge) = (|i: usize| place(i) + (cell + 7) / 2, LABELS - 4);
        // Writing to a `String` cannot fail.
        for (i, token) in self.rows.iter().take(n).enumerate() {
            let _ = write!(
                svg,
                "<text class=\"token\" x=\"{edge}\" y=\"{}\" text-anchor=\"end\">{}</text>",
                middle(i),
                label(token)
            );
        }
        for (j, token) in self.columns.iter().take(m).enumerate() {
            let _ = write!(
                svg,
                "<text class=\"token\" transform=\"translate({} {edge}) rotate(-90)\">{}</text>",
                middle(j),
                label(token)
            );
        }
        let _ = write!(
            svg,
            "<rect x=\"{LABELS}\" y=\"{LABELS}\" width=\"{}\" height=\"{}\" fill=\"none\" class=\"grid\"/><g fill=\"var(--heat)\">",
            m * cell,
            n * cell
        );
        let square = |i: usize, j: usize| {
            let (x, y) = (place(j), place(i));
            format!("<rect x=\"{x}\" y=\"{y}\" width=\"{cell}\" height=\"{cell}\"")
        };
        for (i, row) in self.cells.iter().take(n).enumerate() {
            let mass: f32 = row.iter().sum();
            for (j, value) in row.iter().take(m).enumerate() {
                let share = value / mass.max(f32::MIN_POSITIVE);
                if share >= SHARE_MIN {
                    let opacity = share.sqrt().min(1.0);
                    let _ = write!(svg, "{} opacity=\"{opacity:.2}\"/>", square(i, j));
                }
            }
        }
        svg += "</g>";
        for &(i, j) in self.marked.iter().filter(|&&(i, j)| i < n && j < m) {
            svg += &square(i, j);
            svg += " class=\"mark\"/>";
        }
        svg + "</svg>"
    }
}

/// A token as a label: line breaks and spaces visible, long ones cut.
fn label(token: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '⏎',
        ' ' => '·',
        c => c,
    };
    let text: String = token.chars().map(visible).take(8).collect();
    if text.is_empty() {
        "∅".into()
    } else {
        escape(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_of_unlike_length_have_their_own_labels_and_marks() {
        let texts = |texts: &[&str]| -> Vec<String> { texts.iter().map(|&t| t.into()).collect() };
        let map = HeatMap {
            rows: &texts(&["<a>", "\n"]),
            columns: &texts(&["x y", "", "z"]),
            cells: &[vec![0.4, 0.1, 0.0], vec![0.0, 0.5, 0.0]],
            marked: &[(0, 2), (7, 0)],
        };
        let svg = map.draw();
        for expected in ["&lt;a&gt;", "⏎", "x·y", "∅"] {
            assert!(svg.contains(expected), "{expected}: {svg}");
        }
        // Empty cells are not drawn: three cells, the frame, and the mark that is inside.
        assert_eq!(svg.matches("<rect").count(), 5);
        assert_eq!(svg.matches("class=\"mark\"").count(), 1);
        assert!(svg.contains(&format!("width=\"{}\"", LABELS + 3 * CELL_MAX)));
    }

    #[test]
    fn tokens_of_a_long_sequence_have_room_for_a_line_of_text_each() {
        let tokens = vec!["token".to_owned(); 80];
        let map = HeatMap {
            rows: &tokens,
            columns: &tokens,
            cells: &[],
            marked: &[],
        };
        let width = LABELS + POSITIONS_MAX * CELL_MIN;
        assert!(map.draw().contains(&format!("width=\"{width}\"")));
    }
}
