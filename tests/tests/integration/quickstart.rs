//! The quickstart's fast form on the embedded models: that distilling shows, and that nothing is left running.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use quickstart::{
    run::{Programs, run},
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
    let mut job = embedded(Effort::Fast, &assets(), programs(), out.clone()).unwrap();
    // Two passes of eight, which show less of the same.
    let base = job.tasks[0].arms["base"].as_table_mut().unwrap();
    base.insert("epochs".to_owned(), 2.into());
    let summary = run(&job).unwrap();

    let [few] = &summary.answers[..] else {
        panic!("one task");
    };
    let rows = few.results["rows"].as_array().unwrap();
    let mean = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name);
        let values = row.expect(name)["values"].as_object().unwrap();
        assert_eq!(values.len(), 2, "{summary}");
        values.values().map(|v| v.as_f64().unwrap()).sum::<f64>() / 2.0
    };
    // The student has room to learn, the teacher's soft labels help it, and another text's do not.
    assert!(mean("CE") > 0.4, "{summary}");
    assert!(mean("CE + KL") < mean("CE"), "{summary}");
    assert!(
        mean("CE + KL, another text's teacher") > mean("CE"),
        "{summary}"
    );
    assert!(few.table.contains("| CE + KL |"), "{summary}");
    assert!(few.teacher_tokens_per_second > 0.0);
    assert!(few.bytes_per_token > 10.0 && few.bytes_per_token < 2000.0);
    let page = fs::read_to_string(&few.page).unwrap();
    assert!(page.contains("<svg") && page.contains("What may be claimed"));

    let text = fs::read(out.join("summary.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["tasks"][0]["results"], few.results);
    // The same directory again would mix two runs.
    assert!(run(&job).unwrap_err().to_string().contains("earlier run"));
}

#[test]
fn no_teacher_outlives_a_stopped_or_killed_quickstart() {
    let dir = tempfile::tempdir().unwrap();
    let there = programs();
    symlink(there.teacher_server, dir.path().join("teacher-server")).unwrap();
    symlink(there.student_trainer, dir.path().join("student-trainer")).unwrap();
    for (signal, status) in [
        (libc::SIGTERM, Some(143)),
        (libc::SIGINT, Some(130)),
        (libc::SIGHUP, Some(129)),
        (libc::SIGKILL, None),
    ] {
        let out = dir.path().join(signal.to_string());
        let mut command = quickstart();
        command.args(["run", "--fast", "--assets"]).arg(assets());
        command.arg("--programs").arg(dir.path());
        let mut child = command
            .arg("--out")
            .arg(&out)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = || fs::read_to_string(out.join("few/teacher.port")).unwrap_or_default();
        while port().is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let address = format!("127.0.0.1:{}", port().trim());
        TcpStream::connect(&address).unwrap();
        // What is at work is nobody's to make anew.
        let job = embedded(Effort::Fast, &assets(), programs(), out.clone()).unwrap();
        let said = run(&job).unwrap_err().to_string();
        assert!(
            said.contains("quickstart-under-test run) works in"),
            "{said}"
        );
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        send_signal(&child, signal);
        assert_eq!(child.wait().unwrap().code(), status);
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
