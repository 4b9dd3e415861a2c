//! Provides the verdict of an ablation: means over seeds, differences by seed with their standard error, and what may be
//! claimed of them.

use std::collections::BTreeMap;

use serde::Serialize;

/// Paired standard errors that a claim needs.
const ERRORS_OF_A_CLAIM: f64 = 3.0;

/// What the seeds of one trial came to, by seed.
pub(super) type Values = BTreeMap<u64, f64>;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Mean {
    pub mean: f64,
    /// Standard deviation over the root of the number; none of a single value.
    pub error: Option<f64>,
    pub count: usize,
}

impl Mean {
    /// None of no value.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares = values.iter().map(|value| (value - mean).powi(2));
        let variance = squares.sum::<f64>() / (count as f64 - 1.0);
        (count > 0).then(|| Self {
            mean,
            error: (count > 1).then(|| (variance / count as f64).sqrt()),
            count,
        })
    }

    /// `a - b` over the seeds that both have.
    pub fn of_difference(a: &Values, b: &Values) -> Option<Self> {
        let both = a.iter().filter_map(|(seed, a)| Some(a - b.get(seed)?));
        Self::of(&both.collect::<Vec<_>>())
    }

    /// Whether it is more than three errors above zero. Without any spread every difference is.
    pub fn is_beyond(&self) -> bool {
        self.error
            .is_some_and(|error| self.mean > ERRORS_OF_A_CLAIM * error && self.mean > 0.0)
    }

    /// With a sign, `digits` after the point.
    fn signed(&self, digits: usize) -> String {
        match self.error {
            Some(error) => format!("{:+.digits$} ± {error:.digits$}", self.mean),
            None => format!("{:+.digits$}", self.mean),
        }
    }

    fn plain(&self, digits: usize) -> String {
        match self.error {
            Some(error) => format!("{:.digits$} ± {error:.digits$}", self.mean),
            None => format!("{:.digits$}", self.mean),
        }
    }
}

/// One trial with its numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub name: String,
    pub control_of: Option<String>,
    /// By seed, those that count.
    pub values: Values,
    /// Share of the plan's mass, over rows with links, that lies on them at the end; where records have links.
    #[serde(skip_serializing_if = "Values::is_empty")]
    pub on_links: Values,
    /// The same of a plan that spreads every row evenly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_links_by_chance: Option<f64>,
}

impl Row {
    /// Percent of the mass on links, and what chance would give.
    fn links_cell(&self) -> String {
        let percent: Vec<f64> = self.on_links.values().map(|share| 100.0 * share).collect();
        match (Mean::of(&percent), self.on_links_by_chance) {
            (Some(mean), Some(chance)) => {
                format!("{} (chance {:.1})", mean.plain(1), 100.0 * chance)
            }
            _ => String::new(),
        }
    }
}

/// Every trial's numbers, and how they are read.
pub(super) struct Results<'a> {
    pub rows: &'a [Row],
    pub baseline: &'a str,
    /// 1 where more is better, else -1.
    pub sign: f64,
    /// A share, told in percent.
    pub is_share: bool,
}

/// What may be said of an arm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub arm: String,
    /// The best of the other arms.
    pub rival: Option<String>,
    pub from_rival: Option<Mean>,
    /// Controls that it is not beyond, by name.
    pub not_beyond: Vec<String>,
}

impl Verdict {
    /// Whether the arm is better than its best rival and every control, each by more than three errors.
    pub fn holds(&self) -> bool {
        self.from_rival.is_some_and(|mean| mean.is_beyond()) && self.not_beyond.is_empty()
    }
}

impl Results<'_> {
    /// Improvement of `a` over `b`: positive where a is better.
    fn gain(&self, a: &Row, b: &Row) -> Option<Mean> {
        let mean = Mean::of_difference(&a.values, &b.values)?;
        Some(Mean {
            mean: self.sign * mean.mean,
            ..mean
        })
    }

    fn arms(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.control_of.is_none())
    }

    fn score(&self, row: &Row) -> f64 {
        let values: Vec<f64> = row.values.values().copied().collect();
        Mean::of(&values).map_or(f64::NEG_INFINITY, |mean| self.sign * mean.mean)
    }

    /// Of every arm.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |arm: &Row| {
            let others = self.arms().filter(|other| other.name != arm.name);
            let rival = others.max_by(|a, b| self.score(a).total_cmp(&self.score(b)));
            let controls = self
                .rows
                .iter()
                .filter(|row| row.control_of.as_deref() == Some(&arm.name));
            let lost = controls
                .filter(|control| !self.gain(arm, control).is_some_and(|gain| gain.is_beyond()));
            Verdict {
                arm: arm.name.clone(),
                rival: rival.map(|rival| rival.name.clone()),
                from_rival: rival.and_then(|rival| self.gain(arm, rival)),
                not_beyond: lost.map(|control| control.name.clone()).collect(),
            }
        };
        self.arms().map(verdict).collect()
    }

    /// Heads and cells of the table: every arm, its controls under it.
    pub fn cells(&self, metric: &str) -> (Vec<String>, Vec<Vec<String>>) {
        let (scale, digits) = if self.is_share { (100.0, 1) } else { (1.0, 4) };
        let scaled = |mean: Mean| Mean {
            mean: scale * mean.mean,
            error: mean.error.map(|error| scale * error),
            ..mean
        };
        let unit = if self.is_share { " (%)" } else { "" };
        let has_links = self.rows.iter().any(|row| !row.on_links.is_empty());
        let mut heads = vec![
            "arm".to_owned(),
            format!("{metric}{unit}"),
            format!("better than {}", self.baseline),
            "arm better than this control".to_owned(),
            "seeds".to_owned(),
        ];
        if has_links {
            heads.push("mass on links (%)".to_owned());
        }
        let find = |name: &str| self.rows.iter().find(|row| row.name == name);
        let baseline = find(self.baseline);
        let cell = |gain: Option<Mean>| match gain {
            Some(gain) if gain.is_beyond() => format!("**{}**", scaled(gain).signed(digits)),
            Some(gain) => scaled(gain).signed(digits),
            None => String::new(),
        };
        let row = |row: &Row| {
            let values: Vec<f64> = row.values.values().copied().collect();
            let is_baseline = row.name == self.baseline;
            let over_baseline = baseline
                .filter(|_| !is_baseline)
                .and_then(|b| self.gain(row, b));
            let arm = row.control_of.as_deref().and_then(find);
            let mut cells = vec![
                row.name.clone(),
                Mean::of(&values).map_or(String::new(), |mean| scaled(mean).plain(digits)),
                cell(over_baseline),
                cell(arm.and_then(|arm| self.gain(arm, row))),
                values.len().to_string(),
            ];
            cells.extend(has_links.then(|| row.links_cell()));
            cells
        };
        (heads, self.rows.iter().map(row).collect())
    }

    /// What may be claimed, a sentence an arm that beats anything.
    pub fn sentences(&self) -> Vec<String> {
        let sentence = |verdict: Verdict| {
            let rival = verdict.rival.clone()?;
            let gain = verdict.from_rival?;
            if verdict.holds() {
                let is_controlled = self
                    .rows
                    .iter()
                    .any(|row| row.control_of.as_deref() == Some(&verdict.arm));
                let controls = if is_controlled {
                    " and every control"
                } else {
                    ""
                };
                return Some(format!("{}: better than {rival}{controls}.", verdict.arm));
            }
            if !gain.is_beyond() {
                return None;
            }
            Some(format!(
                "{}: better than {rival}, but not than its control{} {}: nothing may be claimed.",
                verdict.arm,
                if verdict.not_beyond.len() == 1 {
                    ""
                } else {
                    "s"
                },
                verdict.not_beyond.join("; ")
            ))
        };
        let sentences: Vec<String> = self.verdicts().into_iter().filter_map(sentence).collect();
        if sentences.is_empty() {
            return vec![
                "No arm is better than every other by three paired standard errors.".to_owned(),
            ];
        }
        sentences
    }
}

/// As Markdown.
pub(super) fn markdown(heads: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|---|{}\n", "---:|".repeat(heads.len().saturating_sub(1)));
    line(heads) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, of: Option<&str>, values: &[f64]) -> Row {
        Row {
            name: name.to_owned(),
            control_of: of.map(str::to_owned),
            values: (1..).zip(values.iter().copied()).collect(),
            ..Row::default()
        }
    }

    fn results(rows: &[Row], sign: f64) -> Results<'_> {
        Results {
            rows,
            baseline: "ce",
            sign,
            is_share: true,
        }
    }

    #[test]
    fn differences_are_taken_by_seed() {
        // Seeds differ by far more than arms do: the pairs see it.
        let (a, b) = (
            row("a", None, &[0.1, 0.5, 0.9]),
            row("b", None, &[0.0, 0.41, 0.79]),
        );
        let gain = Mean::of_difference(&a.values, &b.values).unwrap();
        assert!((gain.mean - 0.1).abs() < 1e-12 && gain.count == 3);
        // Deviations 0, -0.01, 0.01: variance 1e-4, over 3.
        assert!((gain.error.unwrap() - (1e-4f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!(gain.is_beyond());
        let one = Mean::of_difference(&a.values, &[(2, 0.0)].into()).unwrap();
        assert_eq!((one.count, one.error, one.is_beyond()), (1, None, false));
        assert_eq!(Mean::of_difference(&a.values, &Values::new()), None);
        assert_eq!(Mean::of(&[]), None);
    }

    #[test]
    fn a_claim_needs_the_best_rival_and_every_control() {
        let mut rows = vec![
            row("ce", None, &[0.50, 0.51, 0.52]),
            row("kl", None, &[0.60, 0.61, 0.615]),
            row("ot", None, &[0.70, 0.71, 0.72]),
            row("ot, plan uniform", Some("ot"), &[0.55, 0.56, 0.565]),
        ];
        let verdicts = results(&rows, 1.0).verdicts();
        assert_eq!(verdicts[2].rival.as_deref(), Some("kl"));
        assert!(verdicts[2].holds() && !verdicts[1].holds() && !verdicts[0].holds());
        assert_eq!(verdicts[1].rival.as_deref(), Some("ot"));
        assert_eq!(
            results(&rows, 1.0).sentences(),
            ["ot: better than kl and every control."]
        );
        // A control that does as well takes the claim away.
        rows.push(row("ot, plan row", Some("ot"), &[0.71, 0.70, 0.72]));
        let again = results(&rows, 1.0);
        assert_eq!(again.verdicts()[2].not_beyond, ["ot, plan row"]);
        let said = &again.sentences()[0];
        assert!(said.contains("not than its control ot, plan row"), "{said}");
        // So does one that nobody ran.
        let mut missing = rows[..4].to_vec();
        missing[3].values.clear();
        assert!(!results(&missing, 1.0).verdicts()[2].holds());
        // Where less is better it is the other way around.
        assert!(results(&rows[..2], -1.0).verdicts()[0].holds());
    }

    #[test]
    fn the_table_has_signs_errors_and_bold_claims() {
        let rows = [
            row("ce", None, &[0.50, 0.51]),
            row("kl", None, &[0.60, 0.61]),
            row("kl, another text's teacher", Some("kl"), &[0.40, 0.52]),
        ];
        let results = results(&rows, 1.0);
        let (heads, cells) = results.cells("exact_match");
        let text = markdown(&heads, &cells);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "|---|---:|---:|---:|---:|");
        assert_eq!(lines[2], "| ce | 50.5 ± 0.5 |  |  | 2 |");
        assert_eq!(lines[3], "| kl | 60.5 ± 0.5 | **+10.0 ± 0.0** |  | 2 |");
        assert_eq!(
            lines[4],
            "| kl, another text's teacher | 46.0 ± 6.0 | -4.5 ± 5.5 | +14.5 ± 5.5 | 2 |"
        );
    }

    #[test]
    fn mass_on_links_is_a_column_beside_chance_where_there_are_links() {
        let mut rows = [row("ce", None, &[0.5, 0.6]), row("ot", None, &[0.5, 0.6])];
        assert_eq!(results(&rows, 1.0).cells("exact_match").0.len(), 5);
        rows[1].on_links = [(1, 0.42), (2, 0.44)].into();
        rows[1].on_links_by_chance = Some(0.125);
        let (heads, cells) = results(&rows, 1.0).cells("exact_match");
        assert_eq!(heads[5], "mass on links (%)");
        assert_eq!(
            (cells[0][5].as_str(), cells[1][5].as_str()),
            ("", "43.0 ± 1.0 (chance 12.5)")
        );
        let json = serde_json::to_value(&rows).unwrap();
        assert!(json[0].get("on_links").is_none());
        assert_eq!(json[1]["on_links"]["2"], 0.44);
    }
}
