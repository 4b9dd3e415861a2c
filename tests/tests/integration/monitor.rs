//! Reads what both programs show Prometheus while they work.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result};

use crate::{
    harness::{Listen, ending, send_signal, trainer, wait_until},
    pipeline::{Setup, path_text},
};

pub const ANY_PORT: [&str; 2] = ["--metrics-addr", "127.0.0.1:0"];

/// Where a program says in its log that it shows them.
fn address(log: &str) -> Option<&str> {
    let (_, rest) = log.split_once("metrics at http://")?;
    Some(rest.split_once("/metrics")?.0)
}

/// Status and body of an answer.
fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    let status = head.split_whitespace().nth(1).context("a status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// What a program that says so in its log shows.
pub fn shown(log: &str) -> Result<String> {
    let at = address(log).with_context(|| log.to_owned())?;
    Ok(get(at, "/metrics")?.1)
}

/// The number that a metric has, with its labels as they are written.
pub fn value(body: &str, metric: &str) -> Option<f64> {
    let mut lines = body.lines();
    lines.find_map(|line| line.strip_prefix(metric)?.trim().parse().ok())
}

#[test]
fn both_programs_show_what_they_do() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &ANY_PORT);
    let log = setup.work.path().join("trainer.log");
    let run = setup.work.path().join("run");
    let endless = ["--epochs", "100000", ANY_PORT[0], ANY_PORT[1]];
    let mut child = trainer(&setup.train_args(&teacher, &run, &endless))
        .stderr(File::create(&log)?)
        .spawn()?;
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let shown_now = || shown(&said()).ok();
    let step = || value(&shown_now()?, "ot_distill_train_step ");
    wait_until("a second epoch", || step() > Some(20.0));

    let at = teacher.log();
    let at = address(&at).context("the teacher says where")?;
    assert_eq!(get(at, "/healthz")?, (200, "serving\n".to_owned()));
    let (_, of_teacher) = get(at, "/metrics")?;
    let counted =
        |metric: &str| value(&of_teacher, metric).context(format!("{metric}: {of_teacher}"));
    let kept = "ot_distill_teacher_frames_sent_total{kept=\"true\"} ";
    let computed = "ot_distill_teacher_frames_sent_total{kept=\"false\"} ";
    // Every later epoch is answered from what was kept.
    assert!(counted(kept)? > 0.0 && counted(computed)? > 0.0);
    assert!(counted("ot_distill_teacher_tokens_total ")? > 0.0);
    assert!(counted("ot_distill_teacher_bytes_sent_total ")? > 0.0);
    assert!(counted("ot_distill_teacher_readers ")? <= 1.0);
    assert!(counted("ot_distill_resident_bytes ")? > 1e6);

    let of_trainer = shown(&said())?;
    for metric in [
        "loss",
        "ce",
        "kl",
        "tokens_per_second",
        "tokens_total",
        "lr",
    ] {
        let metric = format!("ot_distill_train_{metric} ");
        assert!(
            value(&of_trainer, &metric) > Some(0.0),
            "{metric}: {of_trainer}"
        );
    }

    // Who connects and says nothing is cut off, and keeps nobody else out for long.
    let idle: Vec<TcpStream> = (0..17)
        .map(|_| TcpStream::connect(at))
        .collect::<Result<_, _>>()?;
    assert_eq!(get(at, "/nothing")?.0, 404);
    drop(idle);

    // A second program at the same place is told so before it does anything.
    let taken = address(&said()).context("an address")?.to_owned();
    let second = setup.work.path().join("second");
    let flags = ["--metrics-addr", &taken];
    let refused = crate::harness::trainer_refuses(&setup.train_args(&teacher, &second, &flags));
    assert!(refused.contains("metrics_addr: cannot listen"), "{refused}");
    assert!(!second.exists());
    send_signal(&child, libc::SIGTERM);
    assert_eq!(ending(&mut child)?.code(), Some(143));
    assert!(run.join("checkpoints").is_dir(), "{}", path_text(&run));
    Ok(())
}
