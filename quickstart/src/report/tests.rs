use super::*;
use crate::run::{Curve, PeakMemory, Row, Spread, TransportPlan};

fn summary() -> Summary {
    let row = |name: &str, numbers: f64, kl: f64| Row {
        name: name.into(),
        accuracy_numbers: Some(Spread::of(&[numbers])),
        accuracy_templates: Some(Spread::of(&[numbers])),
        ce: Spread::of(&[0.5, 0.7]),
        kl: Spread::of(&[kl]),
        seconds: 1.0,
        tokens_per_second: Some(100.0),
        peak_rss_bytes: Some(2_000_000),
    };
    Summary {
        title: "a <title>".into(),
        setting: "two steps".into(),
        rows: vec![row("CE + KL", 0.5, 0.2), row("CE + KL + OT (kl)", 0.4, 0.3)],
        teacher_tokens_per_second: 10.0,
        bytes_per_token: 99.0,
        peak_rss_bytes: PeakMemory {
            teacher: 1_000_000,
            trainer: 2_000_000,
        },
        seconds: 3.0,
        curves: vec![Curve {
            name: "CE".into(),
            ce: vec![2.0, 1.0],
            kl: vec![0.0, 0.0],
        }],
        samples: vec![Sample {
            prompt: "1 & 1?".into(),
            reference: "2".into(),
            answers: vec![("before".into(), "3".into(), false)],
        }],
        plans: vec![TransportPlan {
            title: "before".into(),
            tokens: vec!["a".into()],
            plan: vec![vec![1.0]],
        }],
    }
}

#[test]
fn the_page_stands_alone_and_escapes_what_it_shows() {
    let html = page(&summary());
    for outside in ["http:", "https:", "<script", "src=", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("a &lt;title&gt;") && html.contains("1 &amp; 1?"));
    assert!(html.contains("0.6000 ± 0.1414"), "mean and deviation");
    assert!(html.contains("100 % on the diagonal"));
    // A KL that was not trained has no curve.
    assert_eq!(html.matches("<polyline").count(), 1);
    let balanced = |tag: &str| {
        html.matches(&format!("<{tag}")).count() == html.matches(&format!("</{tag}>")).count()
    };
    for tag in ["div", "section", "figure", "svg", "table", "article", "g"] {
        assert!(balanced(tag), "{tag}");
    }
}

#[test]
fn the_table_says_when_transport_does_not_help() {
    let mut summary = summary();
    assert!(summary.verdict().starts_with("OT does not help"));
    summary.rows[1].accuracy_numbers = Some(Spread::of(&[0.9]));
    assert!(
        summary.verdict().contains("gains 15.00 points"),
        "{}",
        summary.verdict()
    );
    summary.rows[1].accuracy_numbers = summary.rows[0].accuracy_numbers;
    summary.rows[1].accuracy_templates = summary.rows[0].accuracy_templates;
    assert!(summary.verdict().contains("no difference"));
    summary.rows.truncate(1);
    assert_eq!(summary.verdict(), "");
}

#[test]
fn the_diagonal_s_share_is_of_all_mass() {
    let plan = [vec![0.4, 0.1], vec![0.0, 0.5]];
    assert!((on_diagonal(&plan) - 0.9).abs() < 1e-6);
}
