use super::*;
use crate::{
    config::TrainConfig,
    run::{EvalMetrics, RunDirectory, RunLog, StepMetrics},
};

/// A run of 300 steps, which ends in half a line.
fn run(directory: &Path, lr: f64) {
    let run = RunDirectory::create(directory).unwrap();
    let config = TrainConfig {
        lr,
        student: "some <student>".into(),
        ..TrainConfig::default()
    };
    run.begin(&config).unwrap();
    let mut log = RunLog::create(&run).unwrap();
    for step in 1..=300 {
        let metrics = StepMetrics {
            step,
            lr,
            loss: 3.0 - step as f64 / 300.0,
            ce: 2.0,
            peak_rss_bytes: 7_000_000,
            ..Default::default()
        };
        log.step(&metrics).unwrap();
    }
    let eval = EvalMetrics {
        step: 300,
        ce: 2.5,
        ..Default::default()
    };
    log.eval(&eval).unwrap();
    let path = directory.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text + "{\"step\": 30").unwrap();
}

#[test]
fn a_run_shows_what_was_planned_beside_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    run(&path, 1e-3);
    for (on_cpu, ratio) in [(true, "0.80"), (false, "–")] {
        let memory = format!(r#"{{"on_cpu": {on_cpu}, "peak_bytes": 5600000}}"#);
        std::fs::write(path.join("memory.json"), memory).unwrap();
        let html = std::fs::read_to_string(write(&path).unwrap()).unwrap();
        let row = format!("<td>7</td><td>6</td><td>{ratio}</td>");
        assert!(html.contains(&row), "{html}");
    }
}

#[test]
fn a_page_shows_what_the_run_measured_and_what_was_not_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    run(&a, 1e-3);
    run(&b, 2e-3);
    let html = std::fs::read_to_string(write(&a).unwrap()).unwrap();
    for expected in [
        "<td>300</td>",
        // The mean of the last thirty steps.
        "<td>2.0483</td>",
        "<td>lr</td><td>0.0002</td><td>0.001</td>",
        "some &lt;student&gt;",
        "<td>2.5000</td>",
        "<td>7</td>",
        "Cross-entropy on held-out text",
    ] {
        assert!(html.contains(expected), "{expected}: {html}");
    }
    // Neither weight nor number.
    assert!(
        !html.contains("Optimal transport") && !html.contains("<script") && !html.contains("beta1")
    );

    let out = dir.path().join("both.html");
    write_to(&[&a, &b], &out).unwrap();
    let html = std::fs::read_to_string(out).unwrap();
    assert!(html.contains("<td>0.001</td><td>0.002</td>"), "{html}");
    assert!(html.contains("class=\"legend\""));
}

/// The first figure under this caption.
fn figure<'a>(html: &'a str, caption: &str) -> &'a str {
    let (_, rest) = html.split_once(caption).unwrap();
    rest.split_once("</figure>").unwrap().0
}

#[test]
fn a_run_has_one_colour_in_all_charts() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    run(&a, 1e-3);
    run(&b, 2e-3);
    // Only the second has this part of the loss, and it is below 0.
    let path = b.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"ot\":0.0", "\"ot\":-0.5")).unwrap();
    let out = dir.path().join("both.html");
    write_to(&[&a, &b], &out).unwrap();
    let html = std::fs::read_to_string(out).unwrap();
    let both = figure(&html, "Loss, the weighted total");
    assert!(both.contains("var(--s0)") && both.contains("var(--s1)"));
    let second = figure(&html, "Optimal transport");
    assert!(second.contains("var(--s1)") && !second.contains("var(--s0)"));
    assert!(second.contains(">-0.4<"), "{second}");
}

#[test]
fn a_report_begins_with_who_taught_whom_when_and_by_which_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    run(&path, 1e-3);
    let teacher = crate::run::TeacherRecord {
        name: "Qwen2.5-7B".into(),
        ..Default::default()
    };
    teacher.write(&path).unwrap();
    let html = std::fs::read_to_string(write(&path).unwrap()).unwrap();
    let (top, _) = html.split_once("<h2>Results").unwrap();
    for expected in [
        "<code>Qwen2.5-7B</code> teaches <code>some &lt;student&gt;</code>, begun 20",
        " UTC",
        "student-trainer train --student 'some &lt;student&gt;' --lr 0.001</pre>",
    ] {
        assert!(top.contains(expected), "{expected}: {top}");
    }
}

#[test]
fn the_markdown_twin_has_the_tables_of_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    run(&path, 1e-3);
    write(&path).unwrap();
    let text = std::fs::read_to_string(path.join("report.md")).unwrap();
    for expected in [
        "# a\n",
        "student-trainer train --student 'some <student>' --lr 0.001\n",
        "| a | 300 | 0 | 2.0483 | 2.0000 | – | 2.5000 |",
        "| a | 300 | first, last | 2.5000 |",
        "| lr | 0.0002 | 0.001 |",
        "## Memory",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("<svg") && !text.contains("By step"));
    // The same by name.
    let out = dir.path().join("twin.md");
    write_to(&[&path], &out).unwrap();
    assert_eq!(std::fs::read_to_string(out).unwrap(), text);
}

#[test]
fn answers_of_several_runs_stand_under_their_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for (path, after) in [(&a, "four"), (&b, "5")] {
        run(path, 1e-3);
        let written = |text: &str, finish: &str| serde_json::json!({"text": text, "finish": finish, "tokens": 1});
        let samples = serde_json::json!([{
            "prompt": "2 + 2?", "prompt_ids": [1], "reference": "4",
            "before": written("zzz", "length"), "after": written(after, "end"),
        }]);
        std::fs::write(path.join("answers.json"), samples.to_string()).unwrap();
    }
    let html = std::fs::read_to_string(write(&a).unwrap()).unwrap();
    assert!(
        html.contains("<h3>before training</h3><pre>zzz …</pre>"),
        "{html}"
    );
    assert!(html.contains("<h3>expected</h3><pre>4</pre>"));
    let out = dir.path().join("both.html");
    write_to(&[&a, &b], &out).unwrap();
    let html = std::fs::read_to_string(out).unwrap();
    assert_eq!(html.matches("2 + 2?").count(), 1);
    assert!(
        html.contains("<h3>b, after training</h3><pre>5</pre>"),
        "{html}"
    );
}

#[test]
fn the_plan_of_memory_is_shown_part_by_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    run(&path, 1e-3);
    let memory = r#"{"on_cpu": true, "peak_bytes": 5600000, "peak_phase": "loss", "parts": [
        {"name": "adapters", "bytes": 1500000, "phases": []},
        {"name": "moments", "bytes": 4000000, "phases": ["update", "saving"]}]}"#;
    std::fs::write(path.join("memory.json"), memory).unwrap();
    let html = std::fs::read_to_string(write(&path).unwrap()).unwrap();
    let rows = "<tr><td>moments</td><td>4.0</td><td>update, saving</td><td>no</td></tr>\n\
                <tr><td>adapters</td><td>1.5</td><td>always</td><td>yes</td></tr>";
    assert!(html.contains(rows), "{html}");
}

#[test]
fn what_is_no_run_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = write(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.toml"), "{error}");
    run(&dir.path().join("a"), 1e-3);
    let path = dir.path().join("a/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("{\"step\":7,", "{step", 1)).unwrap();
    let error = write(&dir.path().join("a")).unwrap_err().to_string();
    assert!(
        error.contains("metrics.jsonl") && error.contains("line 7"),
        "{error}"
    );
    assert!(write_to(&[], dir.path()).is_err());
}
