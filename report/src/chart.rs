//! Provides line charts as SVG: a few series over the steps, with a legend and a grid.

use std::fmt::Write;

use crate::{axis::Axis, escape};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 280.0;
/// Room for the labels: left, right, top, bottom. On a narrow screen, where a chart shrinks, they are larger.
const MARGIN: [f64; 4] = [72.0, 22.0, 12.0, 30.0];
/// Marks of an axis, about.
const MARKS: usize = 4;
/// Colours of lines; those of further series are dashed.
const COLORS: usize = 5;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// Which colour it has; what is shown in several charts has the same in all of them.
    pub color: usize,
    /// Step and value, steps rising; values that are not finite are gone.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// The finite ones of these points.
    pub fn new(color: usize, name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        let points = points.into_iter().filter(|(_, value)| value.is_finite());
        Self {
            name: name.into(),
            color,
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

    fn is_dashed(&self) -> bool {
        self.color >= COLORS
    }

    fn variable(&self) -> String {
        format!("var(--s{})", self.color % COLORS)
    }
}

/// One chart of all series, from 0 to the largest value and, where there are any below 0, from the smallest; with a legend where
/// there are several.
pub fn lines(series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    let bottom = points().map(|point| point.1).fold(0.0, f64::min);
    // A flat line at 0 lies at the bottom.
    let top = if top > bottom { top } else { 1.0 };
    let values = Axis::around(bottom, top, MARKS);
    let (bottom, top) = values.range();
    let [left, right, above, below] = MARGIN;
    let (plot_width, plot_height) = (WIDTH - left - right, HEIGHT - above - below);
    let x = |step: f64| left + plot_width * step / last;
    let y = |value: f64| above + plot_height * (top - value) / (top - bottom);

    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for (value, label) in values.marks() {
        let class = if value == 0.0 { "grid zero" } else { "grid" };
        // Writing to a `String` cannot fail.
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - right,
            left - 8.0,
            y(value) + 4.0,
            y = y(value),
        );
    }
    for (step, label) in Axis::of_steps(last, MARKS).marks() {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(step),
            HEIGHT - 8.0
        );
    }
    for line in series {
        let (color, title) = (line.variable(), escape(&line.name));
        let place = |&(step, value): &(f64, f64)| format!("{:.1},{:.1}", x(step), y(value));
        let path: Vec<String> = line.points.iter().map(place).collect();
        let dashes = if line.is_dashed() {
            ";stroke-dasharray:7 4"
        } else {
            ""
        };
        let _ = match line.points.as_slice() {
            // A line of one point would not be seen.
            [(step, value)] => write!(
                svg,
                "<circle style=\"fill:{color}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{title}</title></circle>",
                x(*step),
                y(*value)
            ),
            _ => write!(
                svg,
                "<polyline class=\"line\" style=\"stroke:{color}{dashes}\" points=\"{}\"><title>{title}</title></polyline>",
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
    let item = |series: &Series| {
        let style = if series.is_dashed() {
            "dashed"
        } else {
            "solid"
        };
        format!(
            "<li><i style=\"border-top-style:{style};border-top-color:{}\"></i>{}</li>",
            series.variable(),
            escape(&series.name)
        )
    };
    let items: String = series.iter().map(item).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_keep_every_step_once() {
        let points: Vec<_> = (1..=50).map(|i| (f64::from(i), f64::from(2 * i))).collect();
        let series = Series::new(0, "x", points).averaged(20);
        assert!(series.points.len() <= 20);
        assert_eq!(series.points[0], (2.0, 4.0));
        let one = Series::new(0, "x", vec![(3.0, 7.0), (4.0, f64::NAN)]).averaged(20);
        assert_eq!(one.points, [(3.0, 7.0)]);
    }

    #[test]
    fn one_point_is_seen() {
        let svg = lines(&[Series::new(0, "eval", vec![(5.0, 1.0)])]);
        assert!(svg.contains("<circle") && !svg.contains("legend"), "{svg}");
    }

    /// Heights of the points of the first line.
    fn heights(svg: &str) -> Vec<f64> {
        let (_, points) = svg.split_once(" points=\"").unwrap();
        let (points, _) = points.split_once('"').unwrap();
        let height = |point: &str| point.split_once(',').unwrap().1.parse().unwrap();
        points.split(' ').map(height).collect()
    }

    #[test]
    fn values_below_0_lie_below_the_line_of_0() {
        let svg = lines(&[Series::new(
            0,
            "ot",
            vec![(0.0, 1.0), (1.0, -1.0), (2.0, -0.5)],
        )]);
        let heights = heights(&svg);
        assert!(
            heights[1] > heights[2] && heights[2] > heights[0],
            "{heights:?}"
        );
        assert!(
            heights.iter().all(|y| (0.0..=HEIGHT).contains(y)),
            "{heights:?}"
        );
        for label in [">-1<", ">0<", ">1<"] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        assert_eq!(svg.matches("grid zero").count(), 1);
    }

    #[test]
    fn a_series_keeps_its_colour_where_others_are_missing() {
        let series = |color| Series::new(color, "run", vec![(0.0, 1.0), (1.0, 2.0)]);
        let alone = lines(&[series(1)]);
        let beside = lines(&[series(0), series(1)]);
        assert!(alone.contains("stroke:var(--s1)") && !alone.contains("--s0"));
        assert!(beside.contains("stroke:var(--s0)") && beside.contains("stroke:var(--s1)"));
        // The sixth is told from the first by its dashes, in the legend too.
        let many = lines(&[series(0), series(COLORS)]);
        assert_eq!(many.matches("stroke-dasharray").count(), 1);
        assert_eq!(many.matches("border-top-style:dashed").count(), 1);
    }
}
