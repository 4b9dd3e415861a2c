//! The quickstart's fast form on the embedded models: that they are what the README says, and that distilling shows.

use std::{fs, path::Path};

use quickstart::{
    report,
    run::{Programs, Summary, run},
    settings::{Effort, embedded},
};

fn programs() -> Programs {
    Programs {
        teacher_server: env!("CARGO_BIN_EXE_teacher-server-under-test").into(),
        student_trainer: env!("CARGO_BIN_EXE_student-trainer-under-test").into(),
    }
}

#[test]
fn the_fast_form_distils_the_embedded_models() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let job = embedded(Effort::Fast, &assets, programs(), out.clone()).unwrap();
    let summary: Summary = run(&job).unwrap();

    let names: Vec<&str> = summary.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["before", "CE + KL", "CE + KL + OT (kl)", "teacher"]);
    let [before, kl, ot, teacher] = &summary.rows[..] else {
        panic!("four rows");
    };
    let accuracy = |row: &quickstart::run::Row| {
        let of = |spread: Option<quickstart::run::Spread>| spread.unwrap().mean;
        (of(row.accuracy_numbers), of(row.accuracy_templates))
    };
    // 99 % and 90 % of 400 problems; 60 of them stray by 4 points.
    assert!(
        accuracy(teacher).0 > 0.85 && accuracy(teacher).1 > 0.6,
        "{summary}"
    );
    assert!(accuracy(before).0 < accuracy(teacher).0 - 0.2, "{summary}");
    for row in [kl, ot] {
        assert!(row.kl.mean < 0.98 * before.kl.mean, "{summary}");
        assert!(row.peak_rss_bytes.unwrap() > 0 && row.seconds > 0.0);
    }
    assert!(
        teacher.kl.mean < 1e-3,
        "the teacher is no distance from itself: {summary}"
    );
    assert!(summary.teacher_tokens_per_second > 0.0);
    assert!(summary.bytes_per_token > 10.0 && summary.bytes_per_token < 2000.0);
    assert!(summary.peak_rss_bytes.teacher > 1_000_000);

    let path = out.join("summary.json");
    summary.write(&path).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for key in [
        "name",
        "accuracy_numbers",
        "accuracy_templates",
        "ce",
        "kl",
        "seconds",
    ] {
        assert!(json["rows"][1].get(key).is_some(), "{key}");
    }
    let html = report::page(&summary);
    assert!(html.contains("<svg") && html.contains("on the diagonal") && html.contains("<pre>"));

    // The same directory again would mix two runs.
    assert!(run(&job).unwrap_err().to_string().contains("earlier run"));
}
