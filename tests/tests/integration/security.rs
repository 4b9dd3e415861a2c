//! Runs both programs over TLS with a token, as beyond one machine, and with each of the two missing or wrong.

use anyhow::Result;
use distill_tests::fixtures;

use crate::{
    harness::{Listen, trainer_refuses, trainer_succeeds},
    pipeline::{Setup, path_text},
};

#[test]
fn tls_and_token_let_in_who_has_both_and_nobody_else() -> Result<()> {
    let setup = Setup::new()?;
    let work = setup.work.path();
    let (token, wrong) = (work.join("token"), work.join("wrong"));
    std::fs::write(&token, "correct-horse-0123456789\n")?;
    std::fs::write(&wrong, "battery-staple-0123456789\n")?;
    let certificate = fixtures::path("tls/server.pem");
    let key = fixtures::path("tls/server.key");
    let authority = fixtures::path("tls/authority.pem");
    let teacher = setup.serve(
        &Listen::Loopback,
        &[
            "--token-file",
            path_text(&token),
            "--tls-cert",
            path_text(&certificate),
            "--tls-key",
            path_text(&key),
        ],
    );
    let secure = teacher.address().replace("http://", "https://");
    let (ca, good, bad) = (path_text(&authority), path_text(&token), path_text(&wrong));
    let out = work.join("run");
    let base = |address| {
        let student = path_text(setup.student.path());
        let (out, wait) = (path_text(&out), "--connect-timeout-seconds");
        let run = ["train", "--teacher", address, "--student", student];
        [run.as_slice(), &["--out", out, "--steps", "1", wait, "5"]].concat()
    };
    let refused = |address, flags: &[&str]| trainer_refuses(&[&base(address), flags].concat());

    let said = refused(&secure, &["--ca-cert", ca, "--token-file", bad]);
    assert!(said.contains("token"), "{said}");
    assert!(
        !said.contains("battery") && !said.contains("horse"),
        "{said}"
    );
    let said = refused(&secure, &["--ca-cert", ca]);
    assert!(said.contains("token"), "{said}");
    let said = refused(teacher.address(), &["--token-file", good]);
    assert!(said.contains("teacher at"), "{said}");
    // Another authority is refused at once, not waited for.
    let another = path_text(&certificate);
    let said = refused(&secure, &["--ca-cert", another, "--token-file", good]);
    assert!(
        said.contains("certificate") && !said.contains("not ready"),
        "{said}"
    );
    let flags = ["--ca-cert", ca, "--token-file", good];
    trainer_succeeds(&[base(&secure).as_slice(), &flags].concat());
    // An answer is asked for with the same flags.
    let ask = ["generate", "--prompt", "hello", "--max-new-tokens", "2"];
    let ask = [&ask[..], &["--teacher", &secure, "--ca-cert", ca]].concat();
    trainer_succeeds(&[ask.as_slice(), &["--token-file", good]].concat());
    let said = trainer_refuses(&ask);
    assert!(said.contains("token"), "{said}");
    assert!(!teacher.log().contains("horse"), "{}", teacher.log());
    Ok(())
}
