//! Attacks the real server as strangers and greedy clients would, while others go on and must get the same bytes as without.

mod attacks;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use distill_proto::v1::{
    self, stream_blocks_response::Event, teacher_service_client::TeacherServiceClient,
};
use distill_tests::fixtures;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use self::attacks::{ATTACKS, Attack, Target, repeat};
use crate::{
    harness::{Listen, Teacher, trainer_succeeds},
    http2::{Connection, PREFACE},
    pipeline::{Setup, path_text},
};

/// Longest wait for all that a client asks for in one go; seconds where nobody attacks.
const ANSWERS: Duration = Duration::from_secs(240);
const SERVER: [&str; 4] = ["--top-k", "24", "--state", "exact"];
/// Of the server, as `connections` says it, and a little more for a busy machine.
const ADMISSION: Duration = Duration::from_secs(10 + 15);
/// What attacks may add to the server's memory at its peak; 36 MiB were measured. The half requests alone are 256 MB.
const MEMORY_BYTES_MAX: u64 = 128 << 20;

type Client = TeacherServiceClient<Channel>;

/// Runs them side by side until `normal` has an outcome, and checks that each of them did something.
fn under_attack<T>(
    target: &Target,
    attacks: &[(&'static str, Attack)],
    normal: impl FnOnce() -> T,
) -> T {
    let start = |&(name, attack): &(&'static str, Attack)| {
        let target = target.clone();
        (name, std::thread::spawn(move || repeat(&target, attack)))
    };
    let threads: Vec<(&str, JoinHandle<usize>)> = attacks.iter().map(start).collect();
    // They are all at it before anything else begins.
    std::thread::sleep(Duration::from_secs(2));
    let outcome = normal();
    target.stop.store(true, Ordering::SeqCst);
    for (name, thread) in threads {
        let count = thread.join().expect("an attack panicked");
        assert!(count > 0, "the attack `{name}` came to nothing");
    }
    outcome
}

/// Everything that a normal client gets: the plan's frames, some of them again, and scores of one.
#[derive(Debug, PartialEq)]
struct Answers {
    frames: Vec<v1::Block>,
    fetched: Vec<v1::Block>,
    end: v1::End,
    scored: Vec<v1::Block>,
}

/// Asks for all of it, some three times, and checks that it is the same each time.
async fn ask_for_everything(mut client: Client, target: &Target) -> Result<Answers> {
    comes_in(&mut client).await?;
    let mut all: Option<Answers> = None;
    for _ in 0..3 {
        let answers = tokio::time::timeout(ANSWERS, ask_once(&mut client, target)).await;
        let answers = answers.context("others starve it")??;
        if let Some(before) = &all {
            assert_eq!(before, &answers);
        }
        all = Some(answers);
    }
    all.context("asked")
}

async fn ask_once(client: &mut Client, target: &Target) -> Result<Answers, Status> {
    let stream = v1::StreamBlocksRequest {
        plan_fingerprint: target.plan.clone(),
        ..Default::default()
    };
    let mut stream = client.stream_blocks(stream).await?.into_inner();
    let mut frames = Vec::new();
    let end = loop {
        let message = stream.message().await?.and_then(|message| message.event);
        match message.ok_or_else(|| Status::aborted("no end"))? {
            Event::Block(block) => frames.push(block),
            Event::Heartbeat(_) => {}
            Event::End(end) => break end,
        }
        // At its own pace.
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let fetch = v1::FetchBlocksRequest {
        sequence_ids: target.ids.clone(),
        plan_fingerprint: target.plan.clone(),
    };
    let mut stream = client.fetch_blocks(fetch).await?.into_inner();
    let mut fetched = Vec::new();
    while let Some(message) = stream.message().await? {
        fetched.extend(message.block);
    }
    let score = v1::ScoreTokensRequest {
        sequences: vec![v1::TokenSequence {
            token_ids: vec![5, 6, 7, 8],
            target_mask: vec![false, true, true, true],
        }],
        tokenizer_fingerprint: target.tokenizer.clone(),
    };
    let scored = client.score_tokens(score).await?.into_inner().blocks;
    Ok(Answers {
        frames,
        fetched,
        end,
        scored,
    })
}

/// What is known of a server, by asking it.
async fn target_of(teacher: &Teacher) -> Result<Target> {
    let channel = Endpoint::from_shared(teacher.address().to_owned())?.connect_lazy();
    let mut client = TeacherServiceClient::new(channel);
    let info = loop {
        match client.get_server_info(v1::GetServerInfoRequest {}).await {
            Ok(info) => break info.into_inner(),
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let address = teacher.address().trim_start_matches("http://").to_owned();
    let mut target = Target {
        address,
        plan: info.plan_fingerprint,
        tokenizer: info.tokenizer_fingerprint,
        ids: Vec::new(),
        stop: Arc::default(),
    };
    // Ids are in the frames, so that reading them takes one pass.
    let frames = ask_once(&mut client, &target).await?.frames;
    let plan = distill_proto::Fingerprint::from_hex(&target.plan).context("a fingerprint")?;
    for block in &frames {
        let context = distill_proto::FrameContext {
            plan,
            shard: block.shard,
            index: block.index,
        };
        target
            .ids
            .push(distill_proto::Frame::decode(&block.frame, &context)?.sequence_id);
    }
    Ok(target)
}

fn client_of(teacher: &Teacher) -> Result<Client> {
    let channel = Endpoint::from_shared(teacher.address().to_owned())?.connect_lazy();
    Ok(TeacherServiceClient::new(channel))
}

/// Comes in. A flood of strangers may push a newcomer out that has not asked for anything yet, so it tries again, as a trainer.
async fn comes_in(client: &mut Client) -> Result<()> {
    for _ in 0..20 {
        if client
            .get_server_info(v1::GetServerInfoRequest {})
            .await
            .is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("it is not let in")
}

#[test]
fn others_go_on_with_the_same_bytes_whatever_hostile_clients_do() -> Result<()> {
    let setup = Setup::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let _entered = runtime.enter();
    let settings = ["--steps", "3", "--eval-steps", "0"];
    let adapter =
        |run: &std::path::Path| std::fs::read(run.join("adapter/adapter_model.safetensors"));

    let quiet = setup.serve(&Listen::Loopback, &SERVER);
    let target = runtime.block_on(target_of(&quiet))?;
    let expected = runtime.block_on(ask_for_everything(client_of(&quiet)?, &target))?;
    let trained = adapter(&setup.train(&quiet, "quiet", &settings))?;
    assert!(expected.frames.len() > 5 && expected.fetched.len() == expected.frames.len());
    drop(quiet);

    let teacher = setup.serve(&Listen::Loopback, &SERVER);
    let target = runtime.block_on(target_of(&teacher))?;
    let before = teacher.peak_bytes();
    let normal = || -> Result<()> {
        let asking = runtime.spawn({
            let (client, target) = (client_of(&teacher)?, target.clone());
            async move { ask_for_everything(client, &target).await }
        });
        assert_eq!(
            adapter(&setup.train(&teacher, "attacked", &settings))?,
            trained
        );
        let found = runtime.block_on(asking)??;
        assert!(found == expected, "the bytes differ");
        Ok(())
    };
    under_attack(&target, &ATTACKS, normal)?;
    let grown = teacher.peak_bytes() - before;
    assert!(grown < MEMORY_BYTES_MAX, "{} MiB", grown >> 20);
    let log = teacher.log();
    assert!(!log.contains("panicked"), "{log}");
    let about_attacks = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    assert!(
        about_attacks.count() < 10,
        "one line for each trouble: {log}"
    );
    Ok(())
}

#[test]
fn at_the_descriptor_limit_others_get_in_and_one_line_says_so() -> Result<()> {
    let setup = Setup::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let directory = tempfile::tempdir()?;
    for socket in [false, true] {
        let listen = if socket {
            Listen::Socket(directory.path().join("s"))
        } else {
            Listen::Loopback
        };
        let corpus = path_text(&setup.corpus);
        let model = path_text(setup.teacher.path());
        let flags = [
            "--model",
            model,
            "--corpus",
            corpus,
            "--seq-len",
            "48",
            "--top-k",
            "24",
        ];
        let teacher = Teacher::serve_with_descriptors(setup.work.path(), &listen, &flags, 64);
        let silent = crowd(&listen, &teacher, 200)?;
        let target = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), target_of(&teacher)).await?
        })?;
        assert!(target.ids.len() > 5);
        assert!(silent() < 64, "the server holds what it may");
        let log = teacher.log();
        assert!(log.matches("WARN").count() <= 2, "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
    Ok(())
}

/// Opens many silent connections and gives a function that counts those that are still open.
fn crowd(listen: &Listen, teacher: &Teacher, count: usize) -> Result<Box<dyn FnOnce() -> usize>> {
    use std::os::unix::net::UnixStream;
    if let Listen::Socket(path) = listen {
        let open: Vec<UnixStream> = (0..count)
            .map(|_| UnixStream::connect(path))
            .collect::<io::Result<_>>()?;
        return Ok(Box::new(move || {
            let mut buffer = [0];
            let is_open = |stream: &&UnixStream| {
                stream.set_nonblocking(true).expect("a socket");
                let read = io::Read::read(&mut &**stream, &mut buffer);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            };
            open.iter().filter(is_open).count()
        }));
    }
    let address = teacher.address().trim_start_matches("http://");
    let mut open: Vec<Connection> = (0..count)
        .map(|_| Connection::silent(address))
        .collect::<io::Result<_>>()?;
    Ok(Box::new(move || {
        let closed =
            |connection: &mut Connection| connection.is_closed_within(Duration::from_millis(1));
        open.iter_mut().map(closed).filter(|closed| !closed).count()
    }))
}

#[test]
fn half_open_tls_and_a_wrong_token_are_thrown_out_in_time() -> Result<()> {
    let setup = Setup::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let token = setup.work.path().join("token");
    std::fs::write(&token, "correct-horse-0123456789\n")?;
    let (certificate, key) = (
        fixtures::path("tls/server.pem"),
        fixtures::path("tls/server.key"),
    );
    let flags = [
        "--token-file",
        path_text(&token),
        "--tls-cert",
        path_text(&certificate),
        "--tls-key",
        path_text(&key),
    ];
    let teacher = setup.serve(&Listen::Loopback, &flags);
    let address = teacher.address().trim_start_matches("http://").to_owned();
    // Nothing, half of a greeting, a greeting that claims more than comes, and no TLS at all.
    let greeting = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3];
    let mut open = Vec::new();
    for says in [&b""[..], &greeting[..3], &greeting, PREFACE, &[0xff; 4096]] {
        let mut connection = Connection::silent(&address)?;
        connection.write(says)?;
        open.push(connection);
    }
    let secure = teacher.address().replace("http://", "https://");
    let authority = fixtures::path("tls/authority.pem");
    let pem = std::fs::read(&authority)?;
    let begun = Instant::now();
    // Within TLS, but without the token: every call is refused, and the connection does not last.
    let refused = runtime.spawn(async move {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        let channel = Endpoint::from_shared(secure)?
            .tls_config(tls)?
            .connect()
            .await?;
        let mut client = TeacherServiceClient::new(channel);
        let mut refusals = 0;
        for _ in 0..500 {
            let status = client
                .get_server_info(v1::GetServerInfoRequest {})
                .await
                .unwrap_err();
            refusals += usize::from(status.code() == tonic::Code::Unauthenticated);
        }
        anyhow::Ok(refusals)
    });
    let out = setup.work.path().join("run");
    let secure = teacher.address().replace("http://", "https://");
    let (student, out) = (path_text(setup.student.path()), path_text(&out));
    let (ca, token) = (path_text(&authority), path_text(&token));
    let run = [
        "train",
        "--teacher",
        &secure,
        "--student",
        student,
        "--out",
        out,
        "--steps",
        "1",
    ];
    trainer_succeeds(&[&run[..], &["--ca-cert", ca, "--token-file", token]].concat());
    assert!(runtime.block_on(refused)?? > 400);
    for mut connection in open {
        assert!(connection.is_closed_within(ADMISSION.saturating_sub(begun.elapsed())));
    }
    let log = teacher.log();
    assert!(!log.contains("horse") && !log.contains("panicked"), "{log}");
    Ok(())
}
