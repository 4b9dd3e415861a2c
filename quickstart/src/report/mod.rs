/*! Provides `report.html`: one self-contained page with the table, the curves, transport plans, answers and memory.

```text
 Summary ──> table + verdict ──┐
         ──> chart (SVG lines) ├──> one HTML file: no scripts, no network, light and dark
         ──> heatmap (SVG)     │
         ──> answers ──────────┘
```
*/

use std::{fmt::Write, path::Path};

use distill_program::output;
use distill_report::{Answer, Answered, HeatMap, Series, escape, figure, figures, note, section};

use crate::{
    Result,
    run::{HEADS, Sample, Summary, cells},
};

/// Points of a curve: each is the mean over its share of the steps.
const POINTS_MAX: usize = 20;

/// Writes the page.
///
/// # Errors
/// The file system refuses.
pub fn write(summary: &Summary, path: &Path) -> Result<()> {
    Ok(output::write(path, page(summary).as_bytes())?)
}

/// The page's HTML.
pub fn page(summary: &Summary) -> String {
    let sections = [
        section("Results", &(table(summary) + &verdict(summary))),
        section("Loss by step", &curves(summary)),
        section("Transport plans", &plans(summary)),
        section("Answers", &answers(&summary.samples)),
        section("Memory", &memory(summary)),
    ];
    let subtitle = format!("{}; {:.0} s in all.", summary.setting, summary.seconds);
    distill_report::page(&summary.title, &subtitle, &sections)
}

fn table(summary: &Summary) -> String {
    let rows: Vec<Vec<String>> = summary.rows.iter().map(|row| cells(row).into()).collect();
    distill_report::table(&HEADS, &rows)
        + &note(
            "Exact answers in percent of the held-out problems with unseen numbers and with unseen templates; \
             cross-entropy and KL to the teacher in nats a target; seconds of training; tokens a second through the student; \
             the trainer's peak memory in MB.",
        )
}

fn verdict(summary: &Summary) -> String {
    match summary.verdict() {
        text if text.is_empty() => String::new(),
        text => format!("<p class=\"verdict\">{}</p>\n", escape(&text)),
    }
}

fn curves(summary: &Summary) -> String {
    let draw = |title: &str, of: fn(&crate::run::Curve) -> &Vec<f64>| {
        let curves = summary.curves.iter().enumerate();
        let lines = curves.filter(|(_, curve)| of(curve).iter().any(|&value| value != 0.0));
        let lines = lines.map(|(place, curve)| {
            let values = of(curve).iter().enumerate();
            let points = values.map(|(i, &value)| ((i + 1) as f64, value));
            Series::new(place, curve.name.clone(), points.collect()).averaged(POINTS_MAX)
        });
        figure(title, &lines.collect::<Vec<_>>())
    };
    let pair = figures(&[
        draw("Cross-entropy (nats a target)", |curve| &curve.ce),
        draw("KL to the teacher (nats a target)", |curve| &curve.kl),
    ]);
    if pair.is_empty() {
        pair
    } else {
        pair + &note("Means over a twentieth of the steps.")
    }
}

fn plans(summary: &Summary) -> String {
    if summary.plans.is_empty() {
        return String::new();
    }
    let mut titles: Vec<&str> = summary.plans.iter().map(|p| p.title.as_str()).collect();
    titles.dedup();
    let of = |title: &str| -> Vec<_> {
        let plans = summary.plans.iter();
        plans.filter(|plan| plan.title == title).collect()
    };
    let columns: Vec<Vec<_>> = titles.iter().map(|title| of(title)).collect();
    let mut html = String::from(
        "<p>The plan of the <code>kl</code> cost without its position prior: how much of a student position (row) is carried to a \
         teacher position (column). A student that says at every position what the teacher says there has all of it on the \
         diagonal.</p>\n",
    );
    let count = columns.iter().map(Vec::len).min().unwrap_or(0);
    for i in 0..count {
        html += "<div class=\"pair wide\">";
        for column in &columns {
            let plan = column[i];
            let map = HeatMap {
                rows: &plan.tokens,
                columns: &plan.tokens,
                cells: &plan.plan,
                marked: &[],
            };
            let _ = write!(
                html,
                "<figure><figcaption>{}: {:.0} % on the diagonal</figcaption>{}</figure>",
                escape(&plan.title),
                100.0 * on_diagonal(&plan.plan),
                map.draw()
            );
        }
        html += "</div>\n";
    }
    html
}

/// Share of the mass that stays at its position.
fn on_diagonal(plan: &[Vec<f32>]) -> f32 {
    let diagonal = plan.iter().enumerate().filter_map(|(i, row)| row.get(i));
    let all: f32 = plan.iter().flatten().sum();
    diagonal.sum::<f32>() / all.max(f32::MIN_POSITIVE)
}

fn answers(samples: &[Sample]) -> String {
    let asked = samples.iter().map(|sample| {
        let reference = Answer {
            name: "reference".to_owned(),
            text: sample.reference.clone(),
            is_right: None,
        };
        let given = sample.answers.iter().map(|(name, text, is_right)| Answer {
            name: name.clone(),
            text: text.clone(),
            is_right: Some(*is_right),
        });
        Answered {
            prompt: sample.prompt.clone(),
            answers: std::iter::once(reference).chain(given).collect(),
        }
    });
    distill_report::answers(&asked.collect::<Vec<_>>())
}

fn memory(summary: &Summary) -> String {
    let mb = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    format!(
        "<table class=\"small\"><thead><tr><th>process</th><th>peak resident MB</th></tr></thead><tbody>\
         <tr><td>teacher-server</td><td>{}</td></tr><tr><td>student-trainer</td><td>{}</td></tr></tbody></table>\n\
         <p class=\"muted\">The teacher computed {:.0} tokens a second and sent {:.0} bytes a token.</p>\n",
        mb(summary.peak_rss_bytes.teacher),
        mb(summary.peak_rss_bytes.trainer),
        summary.teacher_tokens_per_second,
        summary.bytes_per_token
    )
}

#[cfg(test)]
mod tests;
