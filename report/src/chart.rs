//! Provides line charts as SVG: a few series over the steps, with a legend and a grid.

use std::fmt::Write;

use crate::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
/// Room for the labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [52.0, 8.0, 8.0, 24.0];
const GRID_LINES: usize = 4;
const COLORS: usize = 5;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// Step and value, steps rising; values that are not finite are gone.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// The finite ones of these points.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        let points = points.into_iter().filter(|(_, value)| value.is_finite());
        Self {
            name: name.into(),
            points: points.collect(),
        }
    }

    /// At most `count` points: each the mean of as many neighbours, at the middle of their steps.
    pub fn averaged(mut self, count: usize) -> Self {
        let run = self.points.len().div_ceil(count.max(1)).max(1);
        let mean = |points: &[(f64, f64)]| {
            let n = points.len() as f64;
            let (steps, values) = points.iter().fold((0.0, 0.0), |sums, point| {
                (sums.0 + point.0, sums.1 + point.1)
            });
            (steps / n, values / n)
        };
        self.points = self.points.chunks(run).map(mean).collect();
        self
    }
}

/// One chart of all series, from 0 to the largest value; with a legend where there are several.
pub fn lines(series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    let top = if top > 0.0 { nice(top) } else { 1.0 };
    let [left, right, above, below] = MARGIN;
    let (plot_width, plot_height) = (WIDTH - left - right, HEIGHT - above - below);
    let x = |step: f64| left + plot_width * step / last;
    let y = |value: f64| above + plot_height * (1.0 - value.max(0.0) / top);

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
    for (step, anchor) in [(0.0, "start"), (last / 2.0, "middle"), (last, "end")] {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{step:.0}</text>",
            x(step),
            HEIGHT - 6.0
        );
    }
    for (i, Series { name, points }) in series.iter().enumerate() {
        let color = i % COLORS;
        let title = escape(name);
        let place = |&(step, value): &(f64, f64)| format!("{:.1},{:.1}", x(step), y(value));
        let path: Vec<String> = points.iter().map(place).collect();
        let _ = match points.as_slice() {
            // A line of one point would not be seen.
            [(step, value)] => write!(
                svg,
                "<circle style=\"fill:var(--s{color})\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{title}</title></circle>",
                x(*step),
                y(*value)
            ),
            _ => write!(
                svg,
                "<polyline class=\"line\" style=\"stroke:var(--s{color})\" points=\"{}\"><title>{title}</title></polyline>",
                path.join(" ")
            ),
        };
    }
    svg + "</svg>" + &legend(series)
}

fn legend(series: &[Series]) -> String {
    if series.len() < 2 {
        return String::new();
    }
    let item = |(i, series): (usize, &Series)| {
        format!(
            "<li><i style=\"background:var(--s{})\"></i>{}</li>",
            i % COLORS,
            escape(&series.name)
        )
    };
    let items: String = series.iter().enumerate().map(item).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// The next of 1, 2, 2.5, 4, 5, 8, 10 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0];
    let fitting = steps.into_iter().find(|step| step * power >= value);
    fitting.unwrap_or(10.0) * power
}

/// At most four digits.
fn label(value: f64) -> String {
    if value > 0.0 && value < 1e-3 {
        // A quarter of a power of ten has three digits.
        let text = format!("{value:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        return format!("{digits}e{exponent}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_keep_every_step_once() {
        let points: Vec<_> = (1..=50).map(|i| (f64::from(i), f64::from(2 * i))).collect();
        let series = Series::new("x", points).averaged(20);
        assert!(series.points.len() <= 20);
        assert_eq!(series.points[0], (2.0, 4.0));
        let one = Series::new("x", vec![(3.0, 7.0), (4.0, f64::NAN)]).averaged(20);
        assert_eq!(one.points, [(3.0, 7.0)]);
    }

    #[test]
    fn the_top_of_the_axis_is_round() {
        assert_eq!(nice(0.31), 0.4);
        assert_eq!(nice(2.0), 2.0);
        for (value, text) in [
            (0.1, "0.1"),
            (2.0, "2"),
            (2e-4, "2e-4"),
            (1.25e-5, "1.25e-5"),
            (0.0, "0"),
        ] {
            assert_eq!(label(value), text);
        }
    }

    #[test]
    fn one_point_is_seen() {
        let svg = lines(&[Series::new("eval", vec![(5.0, 1.0)])]);
        assert!(svg.contains("<circle") && !svg.contains("legend"), "{svg}");
    }
}
