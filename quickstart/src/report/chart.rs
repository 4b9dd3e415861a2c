//! Provides line charts as SVG: a few series over the steps, with a legend and a grid.

use std::fmt::Write;

use super::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
/// Room for the labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [44.0, 8.0, 8.0, 24.0];
/// Points of a line: each is the mean over its share of the steps.
const POINTS_MAX: usize = 20;
const GRID_LINES: usize = 4;
const COLORS: usize = 5;

/// One chart of all series, from 0 to the largest value.
pub(super) fn lines(series: &[(String, Vec<f64>)]) -> String {
    let steps = series.iter().map(|(_, v)| v.len()).max().unwrap_or(0);
    let smooth: Vec<Vec<(f64, f64)>> = series.iter().map(|(_, v)| means(v)).collect();
    let top = smooth.iter().flatten().map(|p| p.1).fold(0.0, f64::max);
    let top = if top > 0.0 { nice(top) } else { 1.0 };
    let [left, right, above, below] = MARGIN;
    let (plot_width, plot_height) = (WIDTH - left - right, HEIGHT - above - below);
    let x = |step: f64| left + plot_width * step / steps.max(1) as f64;
    let y = |value: f64| above + plot_height * (1.0 - value / top);

    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for i in 0..=GRID_LINES {
        let value = top * i as f64 / GRID_LINES as f64;
        // Writing to a `String` cannot fail.
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - right,
            left - 6.0,
            y(value) + 4.0,
            label(value),
            y = y(value),
        );
    }
    for (step, anchor) in [(0, "start"), (steps / 2, "middle"), (steps, "end")] {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{step}</text>",
            x(step as f64),
            HEIGHT - 6.0
        );
    }
    for (i, points) in smooth.iter().enumerate() {
        let path: Vec<String> = points
            .iter()
            .map(|&(step, value)| format!("{:.1},{:.1}", x(step), y(value)))
            .collect();
        let _ = write!(
            svg,
            "<polyline class=\"line\" style=\"stroke:var(--s{})\" points=\"{}\"><title>{}</title></polyline>",
            i % COLORS,
            path.join(" "),
            escape(&series[i].0)
        );
    }
    svg + "</svg>" + &legend(series)
}

fn legend(series: &[(String, Vec<f64>)]) -> String {
    let items: Vec<String> = series
        .iter()
        .enumerate()
        .map(|(i, (name, _))| {
            format!(
                "<li><i style=\"background:var(--s{})\"></i>{}</li>",
                i % COLORS,
                escape(name)
            )
        })
        .collect();
    format!("<ul class=\"legend\">{}</ul>", items.concat())
}

/// Means of at most [`POINTS_MAX`] runs of steps, each at the middle of its run.
fn means(values: &[f64]) -> Vec<(f64, f64)> {
    let run = values.len().div_ceil(POINTS_MAX).max(1);
    let mean = |(i, run_values): (usize, &[f64])| {
        let sum: f64 = run_values.iter().sum();
        let n = run_values.len() as f64;
        ((i * run) as f64 + n / 2.0, sum / n)
    };
    values.chunks(run).enumerate().map(mean).collect()
}

/// The next of 1, 2, 2.5, 4, 5, 8, 10 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0];
    let fitting = steps.into_iter().find(|step| step * power >= value);
    fitting.unwrap_or(10.0) * power
}

fn label(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_keep_every_step_once() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let points = means(&values);
        assert!(points.len() <= POINTS_MAX);
        assert_eq!(points[0], (1.5, 1.0));
        assert_eq!(means(&[7.0]), [(0.5, 7.0)]);
    }

    #[test]
    fn the_top_of_the_axis_is_round() {
        assert_eq!(nice(0.31), 0.4);
        assert_eq!(nice(2.0), 2.0);
        assert_eq!(label(0.1), "0.1");
        assert_eq!(label(2.0), "2");
    }
}
