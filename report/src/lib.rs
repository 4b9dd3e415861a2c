/*! Provides pages that stand alone: one HTML file with tables, line charts and heat maps, no scripts, no network, light and dark.

```text
 rows ──> table ──────────────┐
 series ──> chart (SVG lines) │
 prompts ──> answers          ├──> section ──> page
 plan ──> heatmap (SVG cells) │                 │
 whatever else is HTML ───────┘                 │
 Document: blocks of these, without HTML ───────┴──> Markdown
```

The report of every run, of several and of an ablation are made of these pieces.
*/

mod axis;
pub mod chart;
mod document;
pub mod heatmap;
mod style;

use std::fmt::Write;

pub use chart::Series;
pub use document::{Block, Document, Section};
pub use heatmap::HeatMap;

/// A whole page. `subtitle` is text; `sections` are HTML.
pub fn page(title: &str, subtitle: &str, sections: &[String]) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{css}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p class=\"muted\">{subtitle}</p>\n\
         {sections}</main>\n</body>\n</html>\n",
        title = escape(title),
        css = style::CSS,
        subtitle = escape(subtitle),
        sections = sections.concat(),
    )
}

/// A part of a page under its heading; nothing where `body` (HTML) is empty.
pub fn section(title: &str, body: &str) -> String {
    if body.is_empty() {
        String::new()
    } else {
        format!("<section>\n<h2>{}</h2>\n{body}</section>\n", escape(title))
    }
}

/// A table of texts.
pub fn table<C: AsRef<str>>(heads: &[C], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, texts: &mut dyn Iterator<Item = &str>| {
        texts.fold(String::new(), |mut html, text| {
            // Writing to a `String` cannot fail.
            let _ = write!(html, "<{tag}>{}</{tag}>", escape(text));
            html
        })
    };
    let mut html = format!(
        "<div class=\"wide\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n",
        cells("th", &mut heads.iter().map(AsRef::as_ref))
    );
    for row in rows {
        let cells = cells("td", &mut row.iter().map(String::as_str));
        let _ = writeln!(html, "<tr>{cells}</tr>");
    }
    html + "</tbody></table></div>\n"
}

/// A paragraph of small print. `html` is HTML.
pub fn note(html: &str) -> String {
    format!("<p class=\"muted\">{html}</p>\n")
}

/// A chart under its caption; nothing where no series has a point.
pub fn figure(caption: &str, series: &[Series]) -> String {
    if series.iter().all(|series| series.points.is_empty()) {
        String::new()
    } else {
        format!(
            "<figure><figcaption>{}</figcaption>{}</figure>\n",
            escape(caption),
            chart::lines(series)
        )
    }
}

/// Figures side by side where there is room; nothing where all are empty.
pub fn figures(figures: &[String]) -> String {
    if figures.iter().all(String::is_empty) {
        String::new()
    } else {
        format!("<div class=\"pair\">{}</div>\n", figures.concat())
    }
}

/// A prompt, and what was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// What was asked.
    pub prompt: String,
    /// By whom or when, and what.
    pub answers: Vec<Answer>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whose it is.
    pub name: String,
    /// The answer itself.
    pub text: String,
}

/// Prompts, each with its answers side by side; nothing where there are none.
pub fn answers(given: &[Answered]) -> String {
    let mut html = String::new();
    for Answered { prompt, answers } in given {
        let prompt = escape(prompt.trim());
        // Writing to a `String` cannot fail.
        let _ = write!(
            html,
            "<article><p class=\"prompt\">{prompt}</p>\n<div class=\"answers\">\n"
        );
        for answer in answers {
            let _ = writeln!(
                html,
                "<div><h3>{}</h3><pre>{}</pre></div>",
                escape(&answer.name),
                escape(answer.text.trim())
            );
        }
        html += "</div></article>\n";
    }
    html
}

/// Text as HTML shows it literally.
pub fn escape(text: &str) -> String {
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
mod tests {
    use super::*;

    #[test]
    fn pages_stand_alone_and_escape_what_they_show() {
        let rows = [vec!["<b>".to_owned(), "1 & 2".to_owned()]];
        let chart = figure("a \"chart\"", &[Series::new(0, "<s>", vec![(1.0, 2.0)])]);
        let body = table(&["run", "value"], &rows) + &figures(&[chart, String::new()]);
        let html = page("<t>", "a < b", &[section("S", &body), section("empty", "")]);
        for expected in [
            "&lt;t&gt;",
            "a &lt; b",
            "&lt;b&gt;",
            "1 &amp; 2",
            "a &quot;chart&quot;",
            "&lt;s&gt;",
        ] {
            assert!(html.contains(expected), "{expected}: {html}");
        }
        for refused in ["<script", "http", "src=", "empty"] {
            assert!(!html.contains(refused), "{refused}");
        }
        assert!(html.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn answers_stand_under_their_prompt_as_they_are() {
        let answer = |name: &str| Answer {
            name: name.into(),
            text: " x & y\n".into(),
        };
        let html = answers(&[Answered {
            prompt: "p?".into(),
            answers: vec![answer("<b>"), answer("c")],
        }]);
        assert_eq!(html.matches("<pre>x &amp; y</pre>").count(), 2);
        assert!(html.contains("<div><h3>&lt;b&gt;</h3>"), "{html}");
        assert_eq!(answers(&[]), "");
    }

    #[test]
    fn what_has_no_point_is_not_drawn() {
        assert_eq!(figure("x", &[Series::new(0, "a", vec![])]), "");
        assert_eq!(figures(&[String::new()]), "");
    }
}
