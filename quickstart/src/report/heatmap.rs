//! Provides transport plans as heat maps in SVG, with their tokens on the axes.

use std::fmt::Write;

use distill_report::escape;

use crate::run::TransportPlan;

/// Largest side of a cell in pixels; with many positions cells shrink, so that two plans stand side by side.
const CELL_MAX: usize = 11;
const PLAN_MAX: usize = 512;
/// Room for the tokens at the left and at the top.
const LABELS: usize = 54;
/// Positions drawn; longer plans are cut.
const POSITIONS_MAX: usize = 64;
/// Share of a row's mass below which a cell stays empty.
const SHARE_MIN: f32 = 0.02;

/// Share of the mass that stays at its position.
pub(super) fn on_diagonal(plan: &[Vec<f32>]) -> f32 {
    let diagonal = plan.iter().enumerate().filter_map(|(i, row)| row.get(i));
    let all: f32 = plan.iter().flatten().sum();
    diagonal.sum::<f32>() / all.max(f32::MIN_POSITIVE)
}

/// One plan: the darker a cell, the more of its row goes there.
pub(super) fn draw(plan: &TransportPlan) -> String {
    let count = plan.plan.len().min(POSITIONS_MAX);
    let cell = CELL_MAX.min(PLAN_MAX / count.max(1));
    let side = LABELS + count * cell;
    let mut svg = format!(
        "<svg width=\"{side}\" height=\"{side}\" viewBox=\"0 0 {side} {side}\" role=\"img\">"
    );
    let place = |i: usize| LABELS + i * cell;
    for (i, token) in plan.tokens.iter().take(count).enumerate() {
        let (middle, edge) = (place(i) + (cell + 5) / 2, LABELS - 4);
        let token = escape(&shown(token));
        // Writing to a `String` cannot fail.
        let _ = write!(
            svg,
            "<text class=\"token\" x=\"{edge}\" y=\"{middle}\" text-anchor=\"end\">{token}</text>\
             <text class=\"token\" transform=\"translate({middle} {edge}) rotate(-90)\">{token}</text>"
        );
    }
    let _ = write!(
        svg,
        "<rect x=\"{LABELS}\" y=\"{LABELS}\" width=\"{0}\" height=\"{0}\" fill=\"none\" class=\"grid\"/><g fill=\"var(--heat)\">",
        count * cell
    );
    for (i, row) in plan.plan.iter().take(count).enumerate() {
        let mass: f32 = row.iter().sum();
        for (j, value) in row.iter().take(count).enumerate() {
            let share = value / mass.max(f32::MIN_POSITIVE);
            if share >= SHARE_MIN {
                let _ = write!(
                    svg,
                    "<rect x=\"{}\" y=\"{}\" width=\"{cell}\" height=\"{cell}\" opacity=\"{:.2}\"/>",
                    place(j),
                    place(i),
                    share.sqrt().min(1.0)
                );
            }
        }
    }
    svg + "</g></svg>"
}

/// A token as a label: line breaks and spaces visible, long ones cut.
fn shown(token: &str) -> String {
    let text: String = token
        .chars()
        .map(|c| match c {
            '\n' => '⏎',
            ' ' => '·',
            c => c,
        })
        .take(8)
        .collect();
    if text.is_empty() { "∅".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_diagonal_s_share_and_the_labels() {
        let plan = TransportPlan {
            title: "x".into(),
            tokens: vec!["<a>".into(), "\n".into()],
            plan: vec![vec![0.4, 0.1], vec![0.0, 0.5]],
        };
        assert!((on_diagonal(&plan.plan) - 0.9).abs() < 1e-6);
        let svg = draw(&plan);
        assert!(svg.contains("&lt;a&gt;") && svg.contains('⏎'), "{svg}");
        // The empty cell is not drawn: three cells and the frame.
        assert_eq!(svg.matches("<rect").count(), 4);
    }
}
