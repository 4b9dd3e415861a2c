//! Runs teacher and trainers in swap mode as real processes, kills and stops either, and compares with a run beside a resident
//! teacher; everybody's times on the device are checked for overlap.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Child,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use distill_proto::v1::{
    Granted, HoldDeviceRequest, ReleaseDeviceRequest, hold_device_response::Event,
    teacher_service_client::TeacherServiceClient,
};
use serde_json::Value;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    harness::{Listen, Teacher, send_signal, trainer, trainer_succeeds},
    pipeline::{Setup, metrics, path_text},
    stays::{Stay, assert_never_two, now, teacher_stays, trainer_stays},
};

/// Several passes and evaluations, so that the device changes hands between, before and after them.
const SETTINGS: [&str; 18] = [
    "--epochs",
    "3",
    "--grad-accumulation",
    "2",
    "--ot-weight",
    "0.1",
    "--align-cost",
    "hidden",
    "--align-projection",
    "random",
    "--lr",
    "1e-3",
    "--eval-steps",
    "3",
    "--eval-max-sequences",
    "2",
    "--prefetch-frames",
    "1",
];
/// What both kinds of server send.
const SERVER: [&str; 5] = ["--top-k", "24", "--state", "exact", "--json"];
/// Two sequences a turn: the device changes hands many times in a tiny corpus.
const SWAP: [&str; 6] = [
    "--vram-mode",
    "swap",
    "--window",
    "2",
    "--yield-timeout-s",
    "60",
];
/// For a process to do what it does within a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Those of `base`, flags and their values, that `more` does not give.
fn overridden<'a>(base: &[&'a str], more: &[&str]) -> Vec<&'a str> {
    let pairs = base.chunks(2).filter(|pair| !more.contains(&pair[0]));
    pairs.flatten().copied().collect()
}

/// A trainer under way, its log and where it leaves its result.
pub struct Run {
    pub child: Child,
    log: PathBuf,
    pub out: PathBuf,
}

impl Run {
    pub fn start(setup: &Setup, teacher: &Teacher, name: &str, more: &[&str]) -> Result<Self> {
        let out = setup.work.path().join(name);
        let log = setup.work.path().join(format!("{name}.log"));
        let corpus = ["--eval-data", path_text(&setup.corpus)];
        let flags = [&overridden(&SETTINGS, more)[..], &corpus, more].concat();
        let mut command = trainer(&setup.train_args(teacher, &out, &flags));
        let child = command.stderr(File::create(&log)?).spawn()?;
        Ok(Self { child, log, out })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether the last that it said about the device is that it has it.
    pub fn holds(&self) -> bool {
        let log = self.log();
        let last = log.lines().rfind(|line| line.contains("device: "));
        last.is_some_and(|line| line.contains("device: taken") || line.contains("device: kept"))
    }

    /// Waits until `there` says so, looking often.
    pub fn wait_until(&mut self, what: &str, mut there: impl FnMut(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !there(self) {
            let ended = self.child.try_wait()?;
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "no sign of {what} ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for its end, and gives the seconds that took and whether it succeeded.
    fn end(&mut self) -> Result<(f64, bool)> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((start.elapsed().as_secs_f64(), status.success()));
            }
            assert!(
                start.elapsed() < PATIENCE,
                "it does not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn succeeds(&mut self) -> Result<()> {
        let (_, success) = self.end()?;
        assert!(success, "{}", self.log());
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that must not depend on how the device is shared.
fn outcome(out: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut parts = Vec::new();
    for name in ["adapter_model.safetensors", "hidden_projection.safetensors"] {
        let path = out.join("adapter").join(name);
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        parts.push((name.to_owned(), bytes));
    }
    for (file, keys) in [
        ("metrics.jsonl", ["loss", "grad_norm", "epoch"]),
        ("eval.jsonl", ["ce", "kl", "top1_agreement"]),
    ] {
        for line in fs::read_to_string(out.join(file))?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let values = keys.map(|key| line[key].to_string()).join(" ");
            parts.push((format!("{file} {}", line["step"]), values.into_bytes()));
        }
    }
    Ok(parts)
}

/// The run beside a teacher that stays in memory.
pub fn resident(setup: &Setup, more: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let teacher = setup.serve(&Listen::Loopback, &SERVER);
    let mut run = Run::start(setup, &teacher, "resident", more)?;
    run.succeeds()?;
    outcome(&run.out)
}

pub fn assert_same(run: &Run, expected: &[(String, Vec<u8>)]) -> Result<()> {
    let found = outcome(&run.out)?;
    assert_eq!(found.len(), expected.len());
    for ((name, bytes), (_, expected)) in found.iter().zip(expected) {
        assert!(bytes == expected, "{name} differs: {}", run.log());
    }
    Ok(())
}

pub fn swapping(setup: &Setup, listen: &Listen, more: &[&str]) -> Teacher {
    let swap = overridden(&SWAP, more);
    setup.serve(listen, &[&SERVER, &swap[..], more].concat())
}

#[test]
fn swapping_changes_no_bit_and_two_trainers_take_turns_with_the_teacher() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let mut teacher = swapping(&setup, &Listen::Loopback, &[]);
    let mut first = Run::start(&setup, &teacher, "first", &[])?;
    let mut second = Run::start(&setup, &teacher, "second", &[])?;
    first.succeeds()?;
    second.succeeds()?;
    for run in [&first, &second] {
        assert_same(run, &expected)?;
    }
    let mut stays = teacher_stays(&teacher.log());
    let turns = stays.len();
    assert!(turns >= 3, "{stays:?}");
    stays.extend(trainer_stays("first", &first.log(), now()));
    stays.extend(trainer_stays("second", &second.log(), now()));
    let all = assert_never_two(stays);
    let handovers = [&first, &second].map(|run| -> Result<usize> {
        let lines = metrics(&run.out)?;
        let told = lines.iter().filter(|line| line["release_seconds"].is_f64());
        // The teacher's turn lies between leaving and the grant.
        let seconds = |line: &Value, key: &str| line[key].as_f64();
        assert!(told.clone().all(|line| {
            let loading = seconds(line, "load_seconds");
            loading > Some(0.0) && loading < seconds(line, "acquire_seconds")
        }));
        Ok(told.count())
    });
    let [of_first, of_second] = handovers;
    let (of_first, of_second) = (of_first?, of_second?);
    assert!(
        of_first + of_second >= 2 && all > turns + 2,
        "{of_first} and {of_second} handovers in {all} stays"
    );
    assert!(teacher.signal(libc::SIGTERM).success(), "{}", teacher.log());
    Ok(())
}

#[test]
fn a_killed_holder_makes_room_and_who_waits_can_be_stopped() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    let mut endless = Run::start(&setup, &teacher, "endless", &["--steps", "100000"])?;
    // Until it needs the teacher no more, and so has the device for as long as it lives.
    endless.wait_until("twenty steps", |run| {
        metrics(&run.out).is_ok_and(|lines| lines.len() >= 20)
    })?;
    let mut stopped = Run::start(
        &setup,
        &teacher,
        "stopped",
        &["--eval-steps", "0", "--eval-kl", "false"],
    )?;
    stopped.wait_until("its frames", |run| run.log().contains("teacher:"))?;
    std::thread::sleep(Duration::from_millis(500));
    send_signal(&stopped.child, libc::SIGINT);
    let (seconds, success) = stopped.end()?;
    assert!(!success && seconds < 20.0, "{seconds} s: {}", stopped.log());
    assert!(
        stopped.log().contains("nothing was trained"),
        "{}",
        stopped.log()
    );

    let mut next = Run::start(&setup, &teacher, "next", &[])?;
    next.wait_until("its questions", |run| {
        run.log().contains("waiting to score")
    })?;
    assert!(endless.holds() && !next.holds());
    // Before the signal: as soon as it is sent, another may be there, long before this test is told of the end.
    let killed = now();
    endless.child.kill()?;
    endless.child.wait()?;
    next.succeeds()?;
    assert_same(&next, &expected)?;
    let mut stays = teacher_stays(&teacher.log());
    stays.extend(trainer_stays("endless", &endless.log(), killed));
    stays.extend(trainer_stays("next", &next.log(), now()));
    assert_never_two(stays);
    Ok(())
}

#[test]
fn a_killed_server_finds_the_device_as_it_left_it() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let socket = Listen::Socket(setup.work.path().join("teacher.sock"));
    let mut teacher = swapping(&setup, &socket, &[]);
    let mut run = Run::start(&setup, &teacher, "run", &[])?;
    let mut stays = Vec::new();
    for steps in [1, 5] {
        run.wait_until("a step with the device", |run| {
            run.holds() && metrics(&run.out).is_ok_and(|lines| lines.len() >= steps)
        })?;
        let killed = now();
        teacher.kill();
        let before = teacher_stays(&teacher.log()).into_iter();
        stays.extend(before.map(|stay| Stay {
            to: stay.to.min(killed),
            ..stay
        }));
        teacher = swapping(&setup, &socket, &[]);
    }
    run.succeeds()?;
    assert_same(&run, &expected)?;
    let log = run.log();
    assert!(
        ["device: kept", "lost the place", "lost the device's lease"]
            .iter()
            .any(|word| log.contains(word)),
        "{log}"
    );
    stays.extend(teacher_stays(&teacher.log()));
    stays.extend(trainer_stays("run", &log, now()));
    assert_never_two(stays);
    Ok(())
}

#[test]
fn a_holder_that_hangs_is_named_to_others_and_goes_on_when_it_can() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let teacher = swapping(&setup, &Listen::Loopback, &["--yield-timeout-s", "1"]);
    let mut hung = Run::start(&setup, &teacher, "hung", &[])?;
    loop {
        hung.wait_until("the device", Run::holds)?;
        send_signal(&hung.child, libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(50));
        if hung.holds() {
            break;
        }
        // It had left before it was stopped.
        send_signal(&hung.child, libc::SIGCONT);
    }
    let flags = [
        "--eval-steps",
        "0",
        "--eval-kl",
        "false",
        "--reconnect-attempts",
        "0",
    ];
    let mut other = Run::start(&setup, &teacher, "other", &flags)?;
    let (_, success) = other.end()?;
    let name = format!("student-trainer {} (hung) has the device", hung.child.id());
    assert!(!success && other.log().contains(&name), "{}", other.log());
    let loads = teacher_stays(&teacher.log()).len();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        teacher_stays(&teacher.log()).len(),
        loads,
        "it is not overruled"
    );
    send_signal(&hung.child, libc::SIGCONT);
    hung.succeeds()?;
    assert_same(&hung, &expected)?;
    let mut stays = teacher_stays(&teacher.log());
    stays.extend(trainer_stays("hung", &hung.log(), now()));
    assert_never_two(stays);
    Ok(())
}

#[test]
fn a_student_is_evaluated_against_a_teacher_that_makes_room_for_it() -> Result<()> {
    let setup = Setup::new()?;
    let student = path_text(setup.student.path());
    let corpus = path_text(&setup.corpus);
    let eval = |teacher: &Teacher| -> Result<Value> {
        let flags = [
            "eval",
            "--student",
            student,
            "--data",
            corpus,
            "--seq-len",
            "48",
        ];
        let more = ["--teacher", teacher.address(), "--json"];
        let output = trainer_succeeds(&[flags.as_slice(), &more].concat());
        let mut report: Value = serde_json::from_slice(&output.stdout)?;
        report["seconds"].take();
        Ok(report)
    };
    let expected = eval(&setup.serve(&Listen::Loopback, &SERVER))?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    assert_eq!(eval(&teacher)?, expected);
    assert!(expected["kl"].is_f64(), "{expected}");
    assert!(teacher.log().contains("(eval)"), "{}", teacher.log());
    Ok(())
}

/// Gets the device as anybody may, and gives it back: a secret and an epoch to replay.
async fn own_grant(client: &mut TeacherServiceClient<Channel>) -> Result<Granted> {
    let request = HoldDeviceRequest {
        holder: "a thief".into(),
        keeps_secret: true,
        ..Default::default()
    };
    let mut stream = loop {
        match client.hold_device(request.clone()).await {
            Ok(stream) => break stream.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let message = stream.message().await?.and_then(|message| message.event);
    let Some(Event::Granted(granted)) = message else {
        anyhow::bail!("no grant");
    };
    let Granted { epoch, secret } = granted.clone();
    client
        .release_device(ReleaseDeviceRequest { epoch, secret })
        .await?;
    Ok(granted)
}

/// Speaks for whoever has the device until told to stop; gives how often it was refused.
async fn speak_for_others(
    client: &mut TeacherServiceClient<Channel>,
    own: &Granted,
    teacher: &Teacher,
    stop: &AtomicBool,
) -> Result<usize> {
    let mut refused = 0;
    while !stop.load(Ordering::SeqCst) {
        // It knows the epoch that goes on, as whoever reads the log does.
        let log = teacher.log();
        let known = log.rsplit("\"epoch\":").next().unwrap_or_default();
        let known: String = known.chars().take_while(char::is_ascii_digit).collect();
        let known: u64 = known.parse().unwrap_or(own.epoch);
        for epoch in [known, known + 1, own.epoch] {
            for secret in [
                own.secret.clone(),
                vec![0; 16].into(),
                rand::random::<[u8; 16]>().to_vec().into(),
            ] {
                let release = ReleaseDeviceRequest {
                    epoch,
                    secret: secret.clone(),
                };
                let status = client.release_device(release).await.expect_err("released");
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                let take_over = HoldDeviceRequest {
                    holder: "a thief".into(),
                    epoch_held: epoch,
                    secret,
                    keeps_secret: true,
                };
                let status = client.hold_device(take_over).await.expect_err("taken over");
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                refused += 2;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(refused)
}

/// Tells on its way out, also of a failed test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn guesses_and_replays_of_grants_change_nothing_for_the_holder() -> Result<()> {
    let setup = Setup::new()?;
    let expected = resident(&setup, &[])?;
    let teacher = swapping(&setup, &Listen::Loopback, &[]);
    let runtime = tokio::runtime::Runtime::new()?;
    let endpoint = Endpoint::from_shared(teacher.address().to_owned())?;
    let mut client = runtime.block_on(async { TeacherServiceClient::new(endpoint.connect_lazy()) });
    let own = runtime.block_on(own_grant(&mut client))?;
    let stop = AtomicBool::new(false);
    let mut run = Run::start(&setup, &teacher, "run", &[])?;
    let refused = std::thread::scope(|scope| {
        let attack =
            scope.spawn(|| runtime.block_on(speak_for_others(&mut client, &own, &teacher, &stop)));
        let stopping = Stop(&stop);
        run.succeeds()?;
        drop(stopping);
        attack.join().expect("the attack was not refused")
    })?;
    assert!(refused > 50, "{refused} attempts");
    assert_same(&run, &expected)?;
    let log = run.log();
    assert!(
        !log.contains("lease is over") && !log.contains("device: kept"),
        "{log}"
    );
    let secret = hex::encode(&own.secret);
    assert!(!teacher.log().contains(&secret));
    let mut stays = teacher_stays(&teacher.log());
    stays.extend(trainer_stays("run", &log, now()));
    assert_never_two(stays);
    Ok(())
}
