/*! Provides `report.html`: one self-contained page with the table, the curves, transport plans, answers and memory.

```text
 Summary ──> table + verdict ──┐
         ──> chart (SVG lines) ├──> one HTML file: no scripts, no network, light and dark
         ──> heatmap (SVG)     │
         ──> answers ──────────┘
```
*/

mod chart;
mod heatmap;
mod style;

use std::{fmt::Write, fs, path::Path};

use crate::{
    Result,
    error::io_at,
    run::{HEADS, Sample, Summary, cells},
};

/// Writes the page.
///
/// # Errors
/// The file system refuses.
pub fn write(summary: &Summary, path: &Path) -> Result<()> {
    fs::write(path, page(summary)).map_err(io_at(path))
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
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{css}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p class=\"muted\">{setting}; {seconds:.0} s in all.</p>\n\
         {sections}</main>\n</body>\n</html>\n",
        title = escape(&summary.title),
        css = style::CSS,
        setting = escape(&summary.setting),
        seconds = summary.seconds,
        sections = sections.concat(),
    )
}

fn section(title: &str, body: &str) -> String {
    match body.is_empty() {
        true => String::new(),
        false => format!("<section>\n<h2>{title}</h2>\n{body}</section>\n"),
    }
}

fn table(summary: &Summary) -> String {
    let heads = HEADS.map(|head| format!("<th>{}</th>", escape(head)));
    let mut html = format!(
        "<div class=\"wide\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n",
        heads.concat()
    );
    for row in &summary.rows {
        let cells = cells(row);
        let cells: Vec<String> = cells
            .iter()
            .map(|cell| format!("<td>{}</td>", escape(cell)))
            .collect();
        // Writing to a `String` cannot fail.
        let _ = writeln!(html, "<tr>{}</tr>", cells.concat());
    }
    html + "</tbody></table></div>\n\
            <p class=\"muted\">Exact answers in percent of the held-out problems with unseen numbers and with unseen templates; \
            cross-entropy and KL to the teacher in nats a target; seconds of training; tokens a second through the student; the \
            trainer's peak memory in MB.</p>\n"
}

fn verdict(summary: &Summary) -> String {
    match summary.verdict() {
        text if text.is_empty() => String::new(),
        text => format!("<p class=\"verdict\">{}</p>\n", escape(&text)),
    }
}

fn curves(summary: &Summary) -> String {
    let lines = |of: fn(&crate::run::Curve) -> &Vec<f64>| -> Vec<(String, Vec<f64>)> {
        let curves = summary.curves.iter();
        curves
            .map(|curve| (curve.name.clone(), of(curve).clone()))
            .filter(|(_, values)| values.iter().any(|&value| value != 0.0))
            .collect()
    };
    let draw = |title: &str, lines: Vec<(String, Vec<f64>)>| match lines.is_empty() {
        true => String::new(),
        false => format!(
            "<figure><figcaption>{title}</figcaption>{}</figure>\n",
            chart::lines(&lines)
        ),
    };
    let ce = draw("Cross-entropy (nats a target)", lines(|curve| &curve.ce));
    let kl = draw(
        "KL to the teacher (nats a target)",
        lines(|curve| &curve.kl),
    );
    match ce.is_empty() && kl.is_empty() {
        true => String::new(),
        false => format!(
            "<div class=\"pair\">{ce}{kl}</div>\n<p class=\"muted\">Means over a twentieth of the steps.</p>\n"
        ),
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
            let _ = write!(
                html,
                "<figure><figcaption>{}: {:.0} % on the diagonal</figcaption>{}</figure>",
                escape(&plan.title),
                100.0 * heatmap::on_diagonal(&plan.plan),
                heatmap::draw(plan)
            );
        }
        html += "</div>\n";
    }
    html
}

fn answers(samples: &[Sample]) -> String {
    let mut html = String::new();
    for sample in samples {
        let _ = write!(
            html,
            "<article><p class=\"prompt\">{}</p>\n<div class=\"answers\">\n<div><h3>reference</h3><pre>{}</pre></div>\n",
            escape(sample.prompt.trim()),
            escape(sample.reference.trim())
        );
        for (name, text, correct) in &sample.answers {
            let (class, mark) = match correct {
                true => ("right", "right"),
                false => ("wrong", "wrong"),
            };
            let _ = writeln!(
                html,
                "<div class=\"{class}\"><h3>{} <span>{mark}</span></h3><pre>{}</pre></div>",
                escape(name),
                escape(text.trim())
            );
        }
        html += "</div></article>\n";
    }
    html
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

/// Text as HTML shows it literally.
fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests;
