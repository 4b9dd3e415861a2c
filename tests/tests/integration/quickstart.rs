//! The quickstart's fast form on the embedded models: that they are what the README says, and that distilling shows.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use quickstart::{
    report,
    run::{Programs, Summary, run},
    settings::{Effort, embedded},
};

use crate::harness::{program, send_signal};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets")
}

fn quickstart() -> Command {
    program(env!("CARGO_BIN_EXE_quickstart-under-test"))
}

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
    let job = embedded(Effort::Fast, &assets(), programs(), out.clone()).unwrap();
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

#[test]
fn a_stopped_quickstart_left_its_teacher_running() {
    let dir = tempfile::tempdir().unwrap();
    let there = programs();
    symlink(there.teacher_server, dir.path().join("teacher-server")).unwrap();
    symlink(there.student_trainer, dir.path().join("student-trainer")).unwrap();
    for (signal, status) in [
        (libc::SIGTERM, 143),
        (libc::SIGINT, 130),
        (libc::SIGHUP, 129),
    ] {
        let out = dir.path().join(status.to_string());
        let mut command = quickstart();
        command.args(["run", "--fast", "--assets"]).arg(assets());
        command.arg("--programs").arg(dir.path());
        let mut child = command
            .arg("--out")
            .arg(&out)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = || fs::read_to_string(out.join("teacher.port")).unwrap_or_default();
        while port().is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let address = format!("127.0.0.1:{}", port().trim());
        TcpStream::connect(&address).unwrap();
        send_signal(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(status));
        // The test's own time limit is what ends this where the teacher goes on.
        while TcpStream::connect(&address).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_quickstart_command_that_cannot_print_says_so_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    for (arguments, status) in [
        ("--help", 1),
        ("corpus --train 8 --held-out 4 --out corpus", 1),
        ("corpus", 2),
    ] {
        let mut command = quickstart();
        command.args(arguments.split(' ')).current_dir(dir.path());
        let output = command.stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        let output = command.stderr(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments}");
    }
    assert!(dir.path().join("corpus/train.jsonl").is_file());
}
