//! Provides the page of an ablation: the table, what may be claimed, learning curves, and the plans of arms beside the links
//! of their records.

use distill_report::{HeatMap, Series, escape, figure, note, page, section};

use super::table::Row;
use crate::train::PlanMap;

/// What is drawn of a trial.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Learning curves: step and value, of every run.
    pub curves: Vec<Vec<(f64, f64)>>,
    /// Plans of the first run that counts.
    pub maps: Vec<PlanMap>,
}

/// What a page is made of.
pub(super) struct Page<'a> {
    /// Where the runs are.
    pub place: String,
    pub metric: &'static str,
    pub heads: &'a [String],
    pub cells: &'a [Vec<String>],
    /// What the numbers after `±` are.
    pub errors: &'a str,
    /// What may be claimed.
    pub sentences: &'a [String],
    pub rows: &'a [Row],
    /// Of each row.
    pub seen: &'a [Seen],
}

impl Page<'_> {
    /// As HTML.
    pub fn html(&self) -> String {
        let plain: Vec<Vec<String>> = self
            .cells
            .iter()
            .map(|row| row.iter().map(|cell| cell.replace("**", "")).collect())
            .collect();
        let arms = self.arms().enumerate();
        let curves: Vec<Series> = arms
            .map(|(place, (row, seen))| Series::new(place, &row.name, mean_curve(&seen.curves)))
            .collect();
        let caption = format!("{} on held-out text, mean over seeds", self.metric);
        page(
            "Ablation",
            &self.place,
            &[
                section(
                    "Arms and controls",
                    &(distill_report::table(self.heads, &plain) + &note(self.errors)),
                ),
                section(
                    "What may be claimed",
                    &note(&escape(&self.sentences.join(" "))),
                ),
                section("While training", &figure(&caption, &curves)),
                section("Plans and links", &self.plans()),
            ],
        )
    }

    fn arms(&self) -> impl Iterator<Item = (&Row, &Seen)> {
        let rows = self.rows.iter().zip(self.seen);
        rows.filter(|(row, _)| row.control_of.is_none())
    }

    fn plans(&self) -> String {
        let maps = |(row, seen): (&Row, &Seen)| -> String {
            let pair = |map: &PlanMap| pair_of_maps(&row.name, map);
            seen.maps.iter().map(pair).collect()
        };
        let maps: String = self.arms().map(maps).collect();
        if maps.is_empty() {
            return maps;
        }
        note(
            "The plans of an arm's first seed as it was at the end, for the first pairs of the corpus whose record has links: how \
             much of a student position (row) is carried to a teacher position (column). Framed, and beside it: what the record \
             joins.",
        ) + &maps
    }
}

/// A plan, and the record's links as one.
fn pair_of_maps(arm: &str, map: &PlanMap) -> String {
    let mut links: Vec<Vec<f32>> = vec![vec![0.0; map.teacher.len()]; map.student.len()];
    for &(i, j) in &map.links {
        if let Some(cell) = links.get_mut(i).and_then(|row| row.get_mut(j)) {
            *cell = 1.0;
        }
    }
    let figure = |caption: &str, cells: &[Vec<f32>]| {
        let map = HeatMap {
            rows: &map.student,
            columns: &map.teacher,
            cells,
            marked: &map.links,
        };
        format!(
            "<figure><figcaption>{}</figcaption>{}</figure>",
            escape(caption),
            map.draw()
        )
    };
    format!(
        "<div class=\"pair wide\">{}{}</div>\n",
        figure(arm, &map.plan),
        figure("links of the record", &links)
    )
}

/// Means over runs at the steps that all of them have.
fn mean_curve(curves: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let Some(first) = curves.first() else {
        return Vec::new();
    };
    let at = |step: f64| {
        let values = curves.iter().map(|curve| {
            let point = curve.iter().find(|point| point.0 == step);
            point.map(|point| point.1)
        });
        let values: Option<Vec<f64>> = values.collect();
        values.map(|values| (step, values.iter().sum::<f64>() / values.len() as f64))
    };
    first.iter().filter_map(|&(step, _)| at(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_stand_beside_the_links_of_their_record() {
        let seen = Seen {
            curves: Vec::new(),
            maps: vec![PlanMap {
                student: vec!["a".to_owned(), "b".to_owned()],
                teacher: vec!["<x>".to_owned(), "y".to_owned(), "z".to_owned()],
                plan: vec![vec![0.5, 0.0, 0.0], vec![0.0, 0.25, 0.25]],
                links: vec![(0, 0), (1, 2), (9, 9)],
            }],
        };
        let row = |control_of: Option<&str>| Row {
            name: "OT".to_owned(),
            control_of: control_of.map(str::to_owned),
            ..Row::default()
        };
        let html = |rows: &[Row]| {
            let page = Page {
                place: "here".to_owned(),
                metric: "ce",
                heads: &[],
                cells: &[],
                errors: "",
                sentences: &[],
                rows,
                seen: std::slice::from_ref(&seen),
            };
            page.html()
        };
        let arm = html(&[row(None)]);
        assert_eq!(arm.matches("<figure>").count(), 2);
        // Two links are inside, in both maps.
        assert_eq!(arm.matches("class=\"mark\"").count(), 4);
        assert!(arm.contains("&lt;x&gt;"));
        assert!(!html(&[row(Some("arm"))]).contains("<figure>"));
    }
}
