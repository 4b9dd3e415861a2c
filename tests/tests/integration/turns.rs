//! Kills and stops the processes of a run in swap mode, each by itself: how the run ends must not depend on there being several,
//! and nothing of any of them is left.

use std::{
    fs,
    path::Path,
    process::{Child, ExitStatus, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    harness::{Listen, Teacher, ending, send_signal, trainer, trainer_succeeds, wait_until},
    lease::{Run, assert_same, resident, swapping},
    pipeline::{Setup, metrics, path_text},
};

/// Steps that no run of these tests comes to the end of.
const ENDLESS: [&str; 4] = ["--steps", "100000", "--save-steps", "0"];
/// Checkpoints that a killed run goes on from.
const SAVING: [&str; 2] = ["--save-steps", "2"];

/// The process that computes for a run at the moment.
fn turn_of(leader: &Child) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Behind the name, which may hold anything: state and parent.
        let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
        Some((id, parent))
    });
    let mut of_leader = processes.filter(|&(_, parent): &(u32, u32)| parent == leader.id());
    of_leader.next().map(|(id, _)| id)
}

fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    // What waits for its parent to look is dead.
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Steps in the log; while a line is written it is not JSON.
fn steps(run: &Run) -> usize {
    metrics(&run.out).map_or(0, |lines| lines.len())
}

fn wait_for_a_step(run: &mut Run) -> Result<u32> {
    run.wait_until("steps with the device", |run| {
        run.holds() && steps(run) >= 3
    })?;
    turn_of(&run.child).context("no process computes")
}

/// Goes on with the run under the same teacher, to its end.
fn resume(teacher: &Teacher, out: &Path) {
    let place = ["train", "--resume", path_text(out)];
    trainer_succeeds(&[&place[..], &["--teacher", teacher.address()]].concat());
}

/// That the files of a run are those that a run has.
fn assert_nothing_is_left(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        assert!(!name.starts_with(".tmp"), "{name}");
    }
    Ok(())
}

fn code(status: ExitStatus, run: &Run) -> i32 {
    status
        .code()
        .unwrap_or_else(|| panic!("{status}: {}", run.log()))
}

#[test]
fn a_killed_turn_ends_the_run_with_its_signal_and_the_device_is_free() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    let mut run = Run::start(&setup, &teacher, "run", &SAVING)?;
    let turn = wait_for_a_step(&mut run)?;
    // SAFETY: two numbers.
    #[allow(unsafe_code)]
    let killed = unsafe { libc::kill(turn as libc::pid_t, libc::SIGKILL) };
    assert_eq!(killed, 0);
    let status = ending(&mut run.child)?;
    let log = run.log();
    assert_eq!(code(status, &run), 128 + libc::SIGKILL, "{log}");
    assert!(
        log.contains("error: the process that computes was ended by signal 9"),
        "{log}"
    );
    assert!(!run.holds(), "{log}");
    assert_nothing_is_left(&run.out)?;
    // Nobody has the device, so that this gets it.
    resume(&teacher, &run.out);
    assert_same(&run, &expected)
}

#[test]
fn a_turn_ends_with_the_process_that_started_it() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    let mut run = Run::start(&setup, &teacher, "run", &SAVING)?;
    let turn = wait_for_a_step(&mut run)?;
    run.child.kill()?;
    run.child.wait()?;
    wait_until("its end", || !is_alive(turn));
    assert_nothing_is_left(&run.out)?;
    resume(&teacher, &run.out);
    assert_same(&run, &expected)
}

#[test]
fn a_failure_of_a_turn_is_said_once_and_is_the_run_s() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    let flags = ["--lr", "1e30", "--warmup-steps", "0", "--eval-steps", "0"];
    let mut run = Run::start(&setup, &teacher, "run", &flags)?;
    let status = ending(&mut run.child)?;
    let log = run.log();
    assert_eq!(code(status, &run), 1, "{log}");
    assert_eq!(log.matches("error: ").count(), 1, "{log}");
    assert!(log.contains("is not finite") && !run.holds(), "{log}");
    Ok(())
}

/// Two endless runs, one that waits for the device after some steps and one that keeps it.
fn waiting_and_holding(setup: &Setup, teacher: &Teacher, flags: &[&str]) -> Result<[Run; 2]> {
    let flags = [&ENDLESS[..], flags].concat();
    let mut runs = [
        Run::start(setup, teacher, "first", &flags)?,
        Run::start(setup, teacher, "second", &flags)?,
    ];
    // Once all frames are there nobody asks for the device any more, and one of them keeps it.
    wait_until("one that waits", || {
        let counts = [steps(&runs[0]), steps(&runs[1])];
        let [least, most] = [counts[0].min(counts[1]), counts[0].max(counts[1])];
        least > 0 && most > least + 30
    });
    runs.sort_by_key(steps);
    assert!(!runs[0].holds() && runs[1].holds());
    Ok(runs)
}

fn assert_saved(run: &Run) -> Result<()> {
    let checkpoint = run.out.join(format!("checkpoints/step-{:06}", steps(run)));
    assert!(
        checkpoint.is_dir(),
        "{}: {}",
        checkpoint.display(),
        run.log()
    );
    assert!(run.out.join("adapter/adapter_model.safetensors").is_file());
    assert_nothing_is_left(&run.out)
}

#[test]
fn a_stop_while_another_has_the_device_saves_what_was_handed_over() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    let [mut waiting, mut holding] = waiting_and_holding(&setup, &teacher, &[])?;
    for (run, signal, status) in [
        (&mut waiting, libc::SIGINT, 130),
        (&mut holding, libc::SIGTERM, 143),
    ] {
        send_signal(&run.child, signal);
        let ended = ending(&mut run.child)?;
        let log = run.log();
        assert_eq!(code(ended, run), status, "{log}");
        assert_eq!(log.matches("stopping; a second").count(), 1, "{log}");
        assert_saved(run)?;
    }
    // What goes on does so to the same bits.
    let before = steps(&waiting);
    let place = ["train", "--resume", path_text(&waiting.out)];
    let mut command = trainer(&[&place[..], &["--teacher", teacher.address()]].concat());
    let mut again = command.stderr(Stdio::null()).spawn()?;
    wait_until("more steps", || steps(&waiting) > before + 3);
    send_signal(&again, libc::SIGINT);
    assert_eq!(ending(&mut again)?.code(), Some(130));
    let losses = |run: &Run| -> Result<Vec<_>> {
        let lines = metrics(&run.out)?.into_iter();
        Ok(lines.map(|line| line["loss"].clone()).collect())
    };
    let (waited, held) = (losses(&waiting)?, losses(&holding)?);
    let both = waited.len().min(held.len());
    assert!(both > before);
    assert_eq!(waited[..both], held[..both]);
    Ok(())
}

#[test]
fn a_teacher_that_stays_away_costs_a_run_that_waits_no_step() -> Result<()> {
    let setup = Setup::new()?;
    let mut teacher = swapping(&setup, &Listen::Loopback, &[]);
    let flags = ["--reconnect-attempts", "0"];
    let [mut waiting, _] = waiting_and_holding(&setup, &teacher, &flags)?;
    teacher.kill();
    let ended = ending(&mut waiting.child)?;
    let log = waiting.log();
    assert_eq!(code(ended, &waiting), 1, "{log}");
    assert!(log.contains("HoldDevice failed"), "{log}");
    assert_saved(&waiting)
}

#[test]
fn a_teacher_that_is_gone_before_the_next_turn_costs_no_step() -> Result<()> {
    let setup = Setup::new()?;
    let mut teacher = swapping(&setup, &Listen::Loopback, &[]);
    let flags = [
        "--save-steps",
        "0",
        "--reconnect-attempts",
        "0",
        "--connect-timeout-seconds",
        "2",
    ];
    let mut run = Run::start(&setup, &teacher, "run", &flags)?;
    wait_for_a_step(&mut run)?;
    teacher.kill();
    let ended = ending(&mut run.child)?;
    assert_eq!(code(ended, &run), 1, "{}", run.log());
    let saved = format!("checkpoints/step-{:06}", steps(&run));
    assert!(run.out.join(saved).is_dir(), "{}", run.log());
    Ok(())
}
