//! Runs both real programs where nothing can be printed, and stops them in every way: what they do must not depend on who
//! listens, and how they end says what was done.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    every_command::{Place, Use},
    harness::{ending, send_signal, teacher, text, trainer, wait_until},
    pipeline::metrics,
    terminal::Terminal,
};

/// Steps that no run of these tests comes to the end of.
const STEPS: &str = "1000000";
/// Every signal that asks to stop, with the exit status of work that it cut short.
const SIGNALS: [(libc::c_int, i32); 3] = [
    (libc::SIGHUP, 129),
    (libc::SIGINT, 130),
    (libc::SIGTERM, 143),
];

/// A file on a full disk.
fn full() -> Result<Stdio> {
    Ok(OpenOptions::new().write(true).open("/dev/full")?.into())
}

/// A pipe that nobody reads any more.
fn closed() -> Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

fn described(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}

fn assert_no_panic(output: &Output, what: &str) {
    let said = text(output);
    assert!(!said.contains("panicked"), "{what}: {said}");
}

#[test]
fn a_log_that_could_not_be_written_ended_every_command() -> Result<()> {
    let place = Place::new()?;
    for log in [full, closed] {
        for Use { mut command, .. } in place.commands() {
            let output = command.stderr(log()?).output()?;
            let what = described(&command);
            assert_eq!(output.status.code(), Some(0), "{what}");
        }
        // What fails says so by its status all the same.
        let (nothing, nonsense) = (["verify", "/nonexistent"], ["--nonsense"]);
        for (mut command, status) in [
            (trainer(&["eval"]), 1),
            (teacher(&nothing), 1),
            (trainer(&nonsense), 2),
            (teacher(&nonsense), 2),
        ] {
            let output = command.stderr(log()?).output()?;
            assert_eq!(
                output.status.code(),
                Some(status),
                "{}",
                described(&command)
            );
        }
    }
    Ok(())
}

#[test]
fn a_closed_or_full_standard_output_ended_in_a_panic() -> Result<()> {
    let place = Place::new()?;
    let commands = || {
        let helps = ["--help", "--version"].map(|flag| [trainer(&[flag]), teacher(&[flag])]);
        let helps = helps.into_iter().flatten().map(|command| Use {
            name: "help",
            prints: true,
            command,
        });
        helps.chain(place.commands())
    };
    for Use { mut command, .. } in commands() {
        let output = command.stdout(closed()?).output()?;
        let what = format!("closed: {}", described(&command));
        assert!(output.status.success(), "{what}: {}", text(&output));
        assert_no_panic(&output, &what);
    }
    for Use {
        mut command,
        prints,
        ..
    } in commands()
    {
        let output = command.stdout(full()?).output()?;
        let what = format!("full: {}: {}", described(&command), text(&output));
        // Work goes on without its reports; a result that is lost is an error.
        assert_eq!(output.status.code(), Some(i32::from(prints)), "{what}");
        let reports = described(&command).ends_with("--json");
        let is_told = text(&output).contains("standard output");
        assert_eq!(is_told, prints || reports, "{what}");
        assert_no_panic(&output, &what);
    }
    Ok(())
}

#[test]
fn a_server_without_anybody_to_report_to_goes_on_and_ends_well() -> Result<()> {
    let place = Place::new()?;
    for (out, (signal, _)) in [full, closed, full].into_iter().zip(SIGNALS) {
        let port = PathBuf::from(place.fresh());
        let mut command = place.serve(&["--json", "--port-file"]);
        command.arg(&port).stdout(out()?).stderr(out()?);
        let mut child = command.spawn()?;
        wait_until("its port", || {
            fs::read_to_string(&port).is_ok_and(|text| text.ends_with('\n'))
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait()?.is_none(), "it ended by itself");
        send_signal(&child, signal);
        assert_eq!(ending(&mut child)?.code(), Some(0), "signal {signal}");
    }
    Ok(())
}

/// A run that goes on until it is stopped, and its directory.
fn long_run(place: &Place) -> (Command, PathBuf) {
    let command = place.train(&["--steps", STEPS, "--save-steps", "0"]);
    let words: Vec<_> = command.get_args().collect();
    let out = words.iter().position(|word| *word == "--out");
    let out = out.and_then(|at| words.get(at + 1)).map(PathBuf::from);
    (command, out.unwrap_or_default())
}

fn wait_for_steps(run: &Path, steps: usize) {
    wait_until("steps", || {
        metrics(run).is_ok_and(|lines| lines.len() >= steps)
    });
}

/// That the run in `out` can go on from where it ended.
fn assert_saved(out: &Path) -> Result<()> {
    let steps = metrics(out)?.len();
    let checkpoint = out.join(format!("checkpoints/step-{steps:06}"));
    assert!(checkpoint.is_dir(), "{}", checkpoint.display());
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
    Ok(())
}

#[test]
fn a_stopped_run_exited_with_success() -> Result<()> {
    let place = Place::new()?;
    for (signal, status) in SIGNALS {
        let (mut command, out) = long_run(&place);
        let mut child = command.stderr(full()?).spawn()?;
        wait_for_steps(&out, 2);
        send_signal(&child, signal);
        if signal == libc::SIGHUP {
            // From the system, and from the shell that ends as well.
            send_signal(&child, signal);
        }
        assert_eq!(ending(&mut child)?.code(), Some(status));
        assert_saved(&out)?;
    }
    Ok(())
}

#[test]
fn a_closed_terminal_ended_a_run_without_a_checkpoint() -> Result<()> {
    let place = Place::new()?;
    let terminal = Terminal::open()?;
    let (mut command, out) = long_run(&place);
    let mut child = terminal.start(&mut command)?;
    wait_for_steps(&out, 2);
    let screen = String::from_utf8_lossy(&terminal.close()).into_owned();
    assert!(
        screen.contains(" left"),
        "no progress on the terminal: {screen}"
    );
    assert_eq!(ending(&mut child)?.code(), Some(129));
    assert_saved(&out)?;

    let terminal = Terminal::open()?;
    let port = PathBuf::from(place.fresh());
    let mut serve = place.serve(&["--port-file"]);
    let mut child = terminal.start(serve.arg(&port))?;
    wait_until("its port", || port.exists());
    terminal.close();
    assert_eq!(ending(&mut child)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() -> Result<()> {
    let place = Place::new()?;
    let (command, out) = long_run(&place);
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    nohup.arg(command.get_program()).args(command.get_args());
    let mut child = nohup.stderr(Stdio::null()).spawn()?;
    wait_for_steps(&out, 2);
    send_signal(&child, libc::SIGHUP);
    let steps = metrics(&out)?.len();
    wait_for_steps(&out, steps + 2);
    send_signal(&child, libc::SIGTERM);
    assert_eq!(ending(&mut child)?.code(), Some(143));
    assert_saved(&out)
}

#[test]
fn an_impatient_signal_ends_at_once_what_waits() -> Result<()> {
    let place = Place::new()?;
    let fifo = place.fresh();
    assert!(Command::new("mkfifo").arg(&fifo).status()?.success());
    for (first, second, status) in [
        (libc::SIGINT, libc::SIGINT, 130),
        (libc::SIGINT, libc::SIGTERM, 143),
    ] {
        let log = place.fresh();
        let mut command = place.eval(&["--answers-out", &fifo]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let has_said = |word: &str| fs::read_to_string(&log).is_ok_and(|log| log.contains(word));
        wait_until("the wait for a reader", || has_said("for a reader"));
        send_signal(&child, first);
        wait_until("the reaction", || has_said("SIGINT"));
        assert!(child.try_wait()?.is_none(), "it ended by itself");
        send_signal(&child, second);
        let start = Instant::now();
        assert_eq!(ending(&mut child)?.code(), Some(status));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    Ok(())
}

#[test]
fn a_stopped_capture_says_that_it_is_not_complete() -> Result<()> {
    let mut place = Place::new()?;
    // Enough to be in the middle of.
    let corpus = fs::read_to_string(&place.setup.corpus)?;
    place.setup.corpus = PathBuf::from(place.fresh()).with_extension("txt");
    let longer: Vec<String> = (0..400).map(|i| format!("{i} {corpus}")).collect();
    fs::write(&place.setup.corpus, longer.join("\n\n"))?;
    for ((signal, status), moment) in SIGNALS.into_iter().zip(["corpus", "work", "work_time"]) {
        let reports = place.fresh();
        let mut command = place.capture(&["--json"]);
        let mut child = command
            .stdout(File::create(&reports)?)
            .stderr(Stdio::null())
            .spawn()?;
        let read = || fs::read_to_string(&reports).unwrap_or_default();
        wait_until(moment, || read().contains(&format!("\"{moment}\"")));
        send_signal(&child, signal);
        assert_eq!(ending(&mut child)?.code(), Some(status), "{}", read());
        let last: Value = serde_json::from_str(read().lines().last().context("reports")?)?;
        assert_eq!(last["event"], "interrupted", "{last}");
        assert_eq!(last["complete"], false, "{last}");
    }
    Ok(())
}

#[test]
fn a_command_that_was_stopped_at_any_moment_says_so_by_its_status() -> Result<()> {
    let place = Place::new()?;
    for (turn, (signal, status)) in SIGNALS.into_iter().enumerate() {
        for (i, Use { mut command, .. }) in place.commands().into_iter().enumerate() {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn()?;
            std::thread::sleep(Duration::from_millis(7 * ((turn + i) % 9) as u64));
            send_signal(&child, signal);
            let output = child.wait_with_output()?;
            let what = format!("{}: {}", described(&command), text(&output));
            assert_no_panic(&output, &what);
            // Before anything is begun the system ends it.
            let is_stopped =
                output.status.code() == Some(status) || output.status.signal() == Some(signal);
            assert!(
                is_stopped || output.status.success(),
                "{:?}, {what}",
                output.status
            );
            let last = text(&output).lines().last().map(str::to_owned);
            let json: Option<Value> = last.and_then(|line| serde_json::from_str(&line).ok());
            if let Some(complete) = json.as_ref().and_then(|json| json["complete"].as_bool()) {
                assert_eq!(complete, output.status.success(), "{what}");
            }
        }
    }
    Ok(())
}
