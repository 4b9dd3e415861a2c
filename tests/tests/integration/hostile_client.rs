//! Attacks the real server as strangers and greedy clients would, while others go on and must get the same bytes as without.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use distill_proto::v1::{
    self, stream_blocks_response::Event, teacher_service_client::TeacherServiceClient,
};
use distill_tests::fixtures;
use prost::Message;
use rand::{Rng, RngCore};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    harness::{Listen, Teacher, trainer_succeeds},
    http2::{Connection, FRAME_BYTES_MAX, PREFACE},
    pipeline::{Setup, path_text},
};

const SERVER: [&str; 4] = ["--top-k", "24", "--state", "exact"];
/// Of the server, as `connections` says it, and a little more for a busy machine.
const ADMISSION: Duration = Duration::from_secs(10 + 15);
/// What attacks may add to the server's memory at its peak; 36 MiB were measured. The half requests alone are 256 MB.
const MEMORY_BYTES_MAX: u64 = 128 << 20;
/// Streams of a connection, and more than a server lets it have.
const STREAMS: u32 = 40;

/// What an attacker knows: everything that a client may know.
#[derive(Clone)]
struct Target {
    address: String,
    plan: String,
    tokenizer: String,
    ids: Vec<u64>,
    stop: Arc<AtomicBool>,
}

/// A call with a request that the server would answer at length.
struct Call {
    path: &'static str,
    request: Vec<u8>,
}

impl Target {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn calls(&self) -> Vec<Call> {
        let plan_fingerprint = || self.plan.clone();
        let service = |path, request| Call { path, request };
        let tokens = v1::TokenSequence {
            token_ids: (0..64).collect(),
            target_mask: (0..64).map(|t| t > 0).collect(),
        };
        vec![
            service(
                "/distill.v1.TeacherService/StreamBlocks",
                v1::StreamBlocksRequest {
                    plan_fingerprint: plan_fingerprint(),
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            service(
                "/distill.v1.TeacherService/FetchBlocks",
                v1::FetchBlocksRequest {
                    sequence_ids: self.ids.repeat(20),
                    plan_fingerprint: plan_fingerprint(),
                }
                .encode_to_vec(),
            ),
            service(
                "/distill.v1.TeacherService/ScoreTokens",
                v1::ScoreTokensRequest {
                    sequences: vec![tokens; 8],
                    tokenizer_fingerprint: self.tokenizer.clone(),
                }
                .encode_to_vec(),
            ),
            service(
                "/distill.v1.TeacherService/GetBasis",
                v1::GetBasisRequest {
                    plan_fingerprint: plan_fingerprint(),
                }
                .encode_to_vec(),
            ),
            service(
                "/distill.v1.TeacherService/GetVocabulary",
                v1::GetVocabularyRequest {
                    plan_fingerprint: plan_fingerprint(),
                }
                .encode_to_vec(),
            ),
            service("/distill.v1.TeacherService/GetServerInfo", vec![]),
            service(
                "/distill.v1.TeacherService/HoldDevice",
                v1::HoldDeviceRequest {
                    keeps_secret: true,
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            service(
                "/distill.v1.TeacherService/ReleaseDevice",
                vec![0x08, 1, 0x12, 1, 7],
            ),
            service("/grpc.health.v1.Health/Watch", vec![]),
            service("/grpc.health.v1.Health/Check", vec![]),
            // list_services
            service(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                vec![0x3a, 0],
            ),
            service("/no.such.Service/Call", vec![]),
        ]
    }
}

/// An attack: runs until the target says stop, and gives how often it did what it is for.
type Attack = fn(&Target) -> io::Result<usize>;

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

/// An attacker that is thrown out comes again.
fn repeat(target: &Target, attack: Attack) -> usize {
    let mut count = 0;
    while target.goes_on() {
        count += attack(target).unwrap_or_default();
        std::thread::sleep(Duration::from_millis(20));
    }
    count
}

fn hold(target: &Target) {
    while target.goes_on() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every call on as many streams as there may be and more, with nothing of the answers taken.
fn unread(target: &Target, window: u32) -> io::Result<usize> {
    let calls = target.calls();
    let mut open = Vec::new();
    let mut count = 0;
    for _ in 0..8 {
        let mut connection = Connection::open(&target.address, window)?;
        for number in 0..STREAMS {
            let call = &calls[number as usize % calls.len()];
            let stream = 2 * number + 1;
            connection.call(stream, call.path, &[])?;
            let length = call.request.len() as u32;
            connection.message(stream, length, &call.request, true)?;
            count += 1;
        }
        open.push(connection);
    }
    hold(target);
    Ok(count)
}

fn unread_without_a_window(target: &Target) -> io::Result<usize> {
    unread(target, 0)
}

fn unread_but_for_a_byte(target: &Target) -> io::Result<usize> {
    unread(target, 1)
}

/// The same call again and again on one connection after another.
fn flood(target: &Target, path: &str) -> io::Result<usize> {
    let calls = target.calls();
    let call = calls
        .iter()
        .find(|call| call.path.ends_with(path))
        .expect("a call");
    let mut connection = Connection::open(&target.address, 1 << 20)?;
    let mut count = 0;
    for number in 0..2000 {
        if !target.goes_on() {
            break;
        }
        let stream = 2 * number + 1;
        let request = &call.request;
        let sent = connection
            .call(stream, call.path, &[])
            .and_then(|()| connection.message(stream, request.len() as u32, request, true));
        // Thrown out, which does not undo what was done.
        if sent.is_err() {
            break;
        }
        count += 1;
        if number % 8 == 7 {
            // Time for the server to answer, and room for those answers.
            connection.is_closed_within(Duration::from_millis(5));
        }
    }
    Ok(count)
}

fn flood_of_scores(target: &Target) -> io::Result<usize> {
    flood(target, "ScoreTokens")
}

fn flood_of_fetches(target: &Target) -> io::Result<usize> {
    flood(target, "FetchBlocks")
}

fn flood_of_streams(target: &Target) -> io::Result<usize> {
    flood(target, "StreamBlocks")
}

fn flood_of_bases(target: &Target) -> io::Result<usize> {
    flood(target, "GetBasis")
}

fn flood_of_watches(target: &Target) -> io::Result<usize> {
    flood(target, "Watch")
}

fn flood_of_reflections(target: &Target) -> io::Result<usize> {
    flood(target, "ServerReflectionInfo")
}

/// Thousands of calls that are taken back at once.
fn rapid_resets(target: &Target) -> io::Result<usize> {
    let calls = target.calls();
    let mut connection = Connection::open(&target.address, 1 << 20)?;
    for number in 0..5000 {
        let stream = 2 * number + 1;
        let call = &calls[number as usize % calls.len()];
        // The server closes the connection at some point; that is what it should do.
        if connection
            .call(stream, call.path, &[])
            .and_then(|()| connection.reset(stream))
            .is_err()
        {
            return Ok(number as usize);
        }
    }
    Ok(5000)
}

/// Headers above every limit: in one frame after another, which never end, and in one call.
fn huge_metadata(target: &Target) -> io::Result<usize> {
    let value = "x".repeat(8 << 10);
    let mut connection = Connection::open(&target.address, 1 << 20)?;
    connection.call_without_end(1, "/distill.v1.TeacherService/GetServerInfo")?;
    let mut count = 0;
    while target.goes_on()
        && count < 4000
        && connection.continuation(1, &[("x-more", &value)]).is_ok()
    {
        count += 1;
    }
    let mut connection = Connection::open(&target.address, 1 << 20)?;
    connection.call(
        1,
        "/distill.v1.TeacherService/GetServerInfo",
        &[("x-more", &value[..7000]); 2],
    )?;
    Ok(count + 1)
}

/// Messages that lie about their length, are compressed, end early, or are no protobuf.
fn malformed(target: &Target) -> io::Result<usize> {
    let mut random = rand::rng();
    let mut count = 0;
    for call in target.calls() {
        let mut connection = Connection::open(&target.address, 1 << 20)?;
        let mut noise = vec![0; random.random_range(1..4096)];
        random.fill_bytes(&mut noise);
        let whole = call.request.len() as u32;
        let nested = [0x0a_u8].repeat(5000);
        for (number, (claimed, bytes)) in [
            (u32::MAX, &noise[..]),
            (1 << 30, &[]),
            (whole + 1000, &call.request),
            (whole / 2, &call.request),
            (noise.len() as u32, &noise),
            (5000, &nested),
            (0, &noise),
        ]
        .into_iter()
        .enumerate()
        {
            let stream = 2 * number as u32 + 1;
            connection.call(stream, call.path, &[("grpc-encoding", "gzip")])?;
            connection.message(stream, claimed, bytes, true)?;
            count += 1;
        }
        connection.is_closed_within(Duration::from_millis(20));
    }
    Ok(count)
}

/// Large requests that are there but for their end, on every stream.
fn half_requests(target: &Target) -> io::Result<usize> {
    const CLAIMED: u32 = 2 << 20;
    let slice = vec![0; 100_000];
    let mut open: Vec<Connection> = (0..8)
        .map(|_| Connection::open(&target.address, 1 << 20))
        .collect::<io::Result<_>>()?;
    let mut count = 0;
    for number in 0..32 {
        let stream = 2 * number + 1;
        for connection in &mut open {
            // A server that has closed the connection does what it should.
            let begun = connection.call(stream, "/distill.v1.TeacherService/ScoreTokens", &[]);
            let begun = begun.and_then(|()| connection.message(stream, CLAIMED, &slice, false));
            count += usize::from(begun.is_ok());
        }
        for _ in 0..9 {
            // Time for the server to read, so that its windows are never overrun.
            std::thread::sleep(Duration::from_millis(2));
            for connection in &mut open {
                let _ = connection.data(stream, &slice, false);
            }
        }
    }
    hold(target);
    Ok(count)
}

/// Bytes that are no HTTP/2, alone and after its preface.
fn noise(target: &Target) -> io::Result<usize> {
    let mut noise = vec![0; FRAME_BYTES_MAX];
    rand::rng().fill_bytes(&mut noise);
    Connection::silent(&target.address)?.write(&noise)?;
    let mut connection = Connection::silent(&target.address)?;
    connection.write(PREFACE)?;
    connection.write(&noise)?;
    Ok(2)
}

/// More connections than there may be, which say nothing, or half of what begins a connection.
fn silence(target: &Target) -> io::Result<usize> {
    let mut open = Vec::new();
    for number in 0..300 {
        let mut connection = Connection::silent(&target.address)?;
        match number % 3 {
            0 => {}
            1 => connection.write(&PREFACE[..12])?,
            _ => connection.write(PREFACE)?,
        }
        open.push(connection);
    }
    let count = open.len();
    let until = Instant::now() + Duration::from_secs(3);
    while target.goes_on() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(count)
}

/// A byte now and then.
fn slow_loris(target: &Target) -> io::Result<usize> {
    let mut open: Vec<Connection> = (0..10)
        .map(|_| Connection::silent(&target.address))
        .collect::<io::Result<_>>()?;
    let mut count = 0;
    for byte in PREFACE.iter().cycle().take(1000) {
        if !target.goes_on() {
            break;
        }
        for connection in &mut open {
            count += usize::from(connection.write(&[*byte]).is_ok());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(count)
}

const ATTACKS: [(&str, Attack); 16] = [
    ("unread, window 0", unread_without_a_window),
    ("unread, window 1", unread_but_for_a_byte),
    ("flood of ScoreTokens", flood_of_scores),
    ("another flood of ScoreTokens", flood_of_scores),
    ("flood of FetchBlocks", flood_of_fetches),
    ("flood of StreamBlocks", flood_of_streams),
    ("flood of GetBasis", flood_of_bases),
    ("flood of Watch", flood_of_watches),
    ("flood of reflection", flood_of_reflections),
    ("rapid resets", rapid_resets),
    ("huge metadata", huge_metadata),
    ("malformed messages", malformed),
    ("half requests", half_requests),
    ("noise", noise),
    ("silence", silence),
    ("slow loris", slow_loris),
];

type Client = TeacherServiceClient<Channel>;

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
        let answers = ask_once(&mut client, target).await?;
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
