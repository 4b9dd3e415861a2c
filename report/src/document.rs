//! Provides a report as what it says, which is written twice: as a page, and as Markdown without the charts.

use crate::{Answered, Series, answers, figure, figures, note, page, section, table};

/// A whole report.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// Its heading.
    pub title: String,
    /// What stands below the heading.
    pub subtitle: String,
    /// Its parts; those without a block are left out.
    pub sections: Vec<Section>,
}

/// A part under a heading of its own, or before all others without one.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Its heading; empty for none.
    pub title: String,
    /// What it says.
    pub blocks: Vec<Block>,
}

/// One thing that is said.
#[derive(Clone, Debug)]
pub enum Block {
    /// Small print; what stands between backticks is code.
    Note(String),
    /// What people type.
    Code(String),
    /// A table of texts.
    Table {
        /// Its columns.
        heads: Vec<String>,
        /// Its rows.
        rows: Vec<Vec<String>>,
    },
    /// Charts with their captions: not in Markdown.
    Charts(Vec<(String, Vec<Series>)>),
    /// Prompts with answers.
    Answers(Vec<Answered>),
}

impl Section {
    /// A part under this heading.
    pub fn new(title: impl Into<String>, blocks: Vec<Block>) -> Self {
        Self {
            title: title.into(),
            blocks,
        }
    }
}

impl Block {
    /// A table whose columns are named here.
    pub fn table(heads: &[impl AsRef<str>], rows: Vec<Vec<String>>) -> Self {
        Self::Table {
            heads: heads.iter().map(|head| head.as_ref().to_owned()).collect(),
            rows,
        }
    }

    fn html(&self) -> String {
        match self {
            Self::Note(text) => note(&code_between_backticks(text)),
            Self::Code(text) => format!("<pre class=\"code\">{}</pre>\n", crate::escape(text)),
            Self::Table { heads, rows } => table(heads, rows),
            Self::Charts(charts) => {
                let charts = charts.iter();
                let drawn = charts.map(|(caption, series)| figure(caption, series));
                figures(&drawn.collect::<Vec<_>>())
            }
            Self::Answers(given) => answers(given),
        }
    }

    fn markdown(&self) -> String {
        match self {
            Self::Note(text) => format!("{text}\n"),
            Self::Code(text) => fenced(text),
            Self::Table { heads, rows } => {
                let line = |cells: &[String]| {
                    let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
                    format!("| {} |\n", cells.join(" | "))
                };
                let rule = vec!["---".to_owned(); heads.len()].join(" | ");
                let rows: String = rows.iter().map(|row| line(row)).collect();
                format!("{}| {rule} |\n{rows}", line(heads))
            }
            Self::Charts(_) => String::new(),
            Self::Answers(given) => {
                let asked = given.iter().map(|asked| {
                    let prompt = format!("Prompt:\n\n{}", fenced(&asked.prompt));
                    let answers = asked.answers.iter();
                    answers.fold(prompt, |text, answer| {
                        format!(
                            "{text}\n{}:\n\n{}",
                            inline(&answer.name),
                            fenced(&answer.text)
                        )
                    })
                });
                asked.collect::<Vec<_>>().join("\n---\n\n")
            }
        }
    }
}

impl Document {
    /// As one HTML file.
    pub fn html(&self) -> String {
        let sections = self.sections.iter().map(|part| {
            let body: String = part.blocks.iter().map(Block::html).collect();
            if part.title.is_empty() {
                body
            } else {
                section(&part.title, &body)
            }
        });
        page(&self.title, &self.subtitle, &sections.collect::<Vec<_>>())
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", inline(&self.title), inline(&self.subtitle));
        for part in &self.sections {
            let blocks = part.blocks.iter().map(Block::markdown);
            let blocks: Vec<String> = blocks.filter(|block| !block.is_empty()).collect();
            if blocks.is_empty() {
                continue;
            }
            if !part.title.is_empty() {
                text += &format!("\n## {}\n", inline(&part.title));
            }
            text += "\n";
            text += &blocks.join("\n");
        }
        text
    }
}

/// HTML of a text in which code stands between backticks.
fn code_between_backticks(text: &str) -> String {
    let parts = text.split('`').zip(0..);
    let html = parts.map(|(part, number)| match number % 2 {
        0 => crate::escape(part),
        _ => format!("<code>{}</code>", crate::escape(part)),
    });
    html.collect()
}

/// A text of somebody's between fences that are longer than any in it.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max();
    let fence = "`".repeat(longest.unwrap_or_default().max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", text.trim_end_matches('\n'))
}

/// A text of somebody's in a line, as it is.
fn inline(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '#' | '|' | '~' => out.extend(['\\', c]),
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
        out
    })
}

/// The same in a cell, where an empty one would be hard to see.
fn cell(text: &str) -> String {
    let text = inline(text);
    if text.is_empty() {
        "–".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Answer;

    fn document() -> Document {
        let asked = Answered {
            prompt: "Say ``` & <b>".to_owned(),
            answers: vec![Answer {
                name: "after".to_owned(),
                text: "two\nlines".to_owned(),
            }],
        };
        Document {
            title: "a_run".to_owned(),
            subtitle: "by <someone>".to_owned(),
            sections: vec![
                Section::new("", vec![Block::Code("train --lr 1".to_owned())]),
                Section::new(
                    "Results",
                    vec![
                        Block::table(&["a|b", "c"], vec![vec!["1".to_owned(), String::new()]]),
                        Block::Note("Of `x < y`.".to_owned()),
                    ],
                ),
                Section::new(
                    "Curves",
                    vec![Block::Charts(vec![(
                        "loss".to_owned(),
                        vec![Series::new(0, "run", vec![(1.0, 2.0)])],
                    )])],
                ),
                Section::new("Answers", vec![Block::Answers(vec![asked])]),
                Section::new("Nothing", vec![]),
            ],
        }
    }

    #[test]
    fn both_forms_say_the_same_but_for_charts() {
        let (html, markdown) = (document().html(), document().markdown());
        for (of_html, of_markdown) in [
            ("<h1>a_run</h1>", "# a\\_run\n"),
            ("by &lt;someone&gt;", "by \\<someone>\n"),
            (
                "<pre class=\"code\">train --lr 1</pre>",
                "```text\ntrain --lr 1\n```\n",
            ),
            (
                "<td>1</td><td></td>",
                "| a\\|b | c |\n| --- | --- |\n| 1 | – |\n",
            ),
            ("Of <code>x &lt; y</code>.", "\nOf `x < y`.\n"),
            ("two\nlines", "after:\n\n```text\ntwo\nlines\n```\n"),
            ("Say ``` &amp; &lt;b&gt;", "````text\nSay ``` & <b>\n````\n"),
        ] {
            assert!(html.contains(of_html), "{of_html}: {html}");
            assert!(markdown.contains(of_markdown), "{of_markdown}: {markdown}");
        }
        assert!(html.contains("<svg") && !markdown.contains("Curves"));
        assert!(!html.contains("Nothing") && !markdown.contains("Nothing"));
    }
}
