//! Provides the tests against a teacher that lies in its streams: every lie ends soon, in an error that names it.

use std::time::Duration;

use distill_proto::{
    Estimator, Fingerprint, Frame, StateKind,
    v1::{self, Block, Heartbeat, StreamBlocksResponse, stream_blocks_response::Event},
};

use super::{
    BlockStream, Position, Received, StreamOptions, Teacher,
    mock::{Message, MockTeacher, encoded, event, made_up_frame},
};
use crate::{Error, Result, shutdown::Shutdown};

/// Longest that any lie may keep a trainer.
const PATIENCE: Duration = Duration::from_secs(10);
const FRAMES: u64 = 4;
/// Bytes of a frame's header that say what its steps are and how many tokens it has.
const STEP_AT: usize = 12;
const TOKENS_AT: usize = 20;
const TEMPERATURE_AT: usize = 104;

fn options() -> StreamOptions {
    StreamOptions {
        prefetch_frames: 2,
        reconnect_attempts: 2,
        token_ids: 64,
        stall_max: Some(Duration::from_millis(200)),
        ..StreamOptions::default()
    }
}

/// The frames of a pass that were handed out, and how it ended.
async fn pass(mock: &MockTeacher, options: StreamOptions) -> (Vec<Received>, Result<()>) {
    let shutdown = Shutdown::default();
    let mut all = Vec::new();
    let ended = async {
        let teacher = Teacher::connect(&mock.connect_options(), &shutdown).await?;
        let info = teacher.info().await?;
        let start = Position::default();
        let mut stream = BlockStream::start(teacher, info, start, options, shutdown.clone());
        while let Some(arrival) = stream.next().await? {
            all.extend(arrival.received);
        }
        Ok::<(), Error>(())
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await;
    (all, ended.expect("the trainer hangs"))
}

/// Expects that the pass ends in an error with `expected` in it before the last frame is handed out.
async fn assert_found(mock: &MockTeacher, lie: &str, expected: &str) {
    let (used, ended) = pass(mock, options()).await;
    let message = ended.expect_err(lie).to_string();
    assert!(message.contains(expected), "{lie}: {message}");
    assert!((used.len() as u64) < FRAMES, "{lie}: everything was used");
}

fn block(sent: &mut [Message], index: usize) -> &mut Block {
    let blocks = sent.iter_mut().filter_map(|message| match message {
        Ok(StreamBlocksResponse {
            event: Some(Event::Block(block)),
        }) => Some(block),
        _ => None,
    });
    blocks.into_iter().nth(index).expect("a block")
}

fn end(sent: &mut [Message]) -> &mut v1::End {
    let Some(Ok(StreamBlocksResponse {
        event: Some(Event::End(end)),
    })) = sent.last_mut()
    else {
        panic!("no end");
    };
    end
}

/// Frame 2 with a change, as a writer would encode it.
fn forged(change: impl Fn(&mut Frame)) -> impl Fn(&mut Vec<Message>) {
    move |sent| {
        let mut frame = made_up_frame(2);
        change(&mut frame);
        block(sent, 2).frame = encoded(&frame);
    }
}

/// Frame 2 with other bytes at `at`, and the checksum that they would have.
fn patched(at: usize, bytes: [u8; 4]) -> impl Fn(&mut Vec<Message>) {
    move |sent| {
        let block = block(sent, 2);
        let mut frame = block.frame.to_vec();
        frame[at..at + 4].copy_from_slice(&bytes);
        let covered = frame.len() - 16;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&Fingerprint::of(b"mock plan").0);
        hasher.update(&block.shard.to_le_bytes());
        hasher.update(&block.index.to_le_bytes());
        hasher.update(&frame[..covered]);
        hasher.finalize_xof().fill(&mut frame[covered..]);
        block.frame = frame.into();
    }
}

type StreamLie = (
    &'static str,
    Box<dyn Fn(&mut Vec<Message>) + Send>,
    &'static str,
);

fn lie(
    name: &'static str,
    change: impl Fn(&mut Vec<Message>) + Send + 'static,
    expected: &'static str,
) -> StreamLie {
    (name, Box::new(change), expected)
}

fn lies_in_frames() -> Vec<StreamLie> {
    vec![
        lie(
            "one bit turned over",
            |sent| {
                let block = block(sent, 2);
                let mut frame = block.frame.to_vec();
                let middle = frame.len() / 2;
                frame[middle] ^= 4;
                block.frame = frame.into();
            },
            "checksum",
        ),
        lie(
            "no frame at all",
            |sent| block(sent, 2).frame = vec![7; 1 << 20].into(),
            "magic",
        ),
        lie(
            "an empty frame",
            |sent| block(sent, 2).frame = Default::default(),
            "",
        ),
        lie(
            "another estimator in mid-stream",
            forged(|frame| {
                let rows = &mut frame.rows;
                rows.estimator = Estimator::Sampled;
                rows.counts = vec![1; rows.ids.len()];
            }),
            "frame 2 is not as agreed: estimator: Sampled, the handshake said TopK",
        ),
        lie(
            "a larger K",
            forged(|frame| {
                let rows = &mut frame.rows;
                rows.k = 5;
                rows.ids = [1, 5, 9, 20, 30].repeat(rows.rows);
                rows.logits = [3.0, 2.0, 1.0, 0.75, 0.5].repeat(rows.rows);
            }),
            "K: 5 entries a row, 4 at most",
        ),
        lie(
            "other temperatures",
            forged(|frame| frame.rows.temperatures = vec![2.0]),
            "temperatures: [2.0], the handshake said [1.0]",
        ),
        lie(
            "no state",
            forged(|frame| frame.rows.state = None),
            "state: None",
        ),
        lie(
            "another kind of state",
            forged(|frame| {
                let state = frame.rows.state.as_mut().expect("a state");
                state.kind = StateKind::Sketch;
            }),
            "state: Some((Sketch, 3, 1))",
        ),
        lie(
            "a larger vocabulary",
            forged(|frame| frame.rows.vocab_size = 40),
            "vocabulary: 40, the handshake said 32",
        ),
        lie(
            "a token that no embedding has",
            forged(|frame| frame.token_ids[1] = 64),
            "id 64 is outside the vocabulary of 64",
        ),
        lie(
            "another sequence in place of this one",
            forged(|frame| {
                *frame = Frame {
                    index: 2,
                    ..made_up_frame(1)
                }
            }),
            "came before",
        ),
        lie(
            "frame 1 replayed",
            |sent| {
                let again = block(sent, 1).frame.clone();
                block(sent, 2).frame = again;
            },
            "",
        ),
        lie(
            "a longer sequence than any",
            forged(|frame| {
                *frame = Frame {
                    index: 2,
                    ..made_up_frame(20)
                }
            }),
            "sequence: 22 tokens, 5 at most",
        ),
        lie(
            "lengths that do not add up",
            patched(TOKENS_AT, 65_535u32.to_le_bytes()),
            "add up",
        ),
        lie(
            "steps that are no number",
            patched(STEP_AT, f32::NAN.to_le_bytes()),
            "value coding",
        ),
        lie(
            "logits that are no number",
            patched(STEP_AT, f32::MAX.to_le_bytes()),
            "NaN or infinity",
        ),
        lie(
            "temperatures that are no number",
            patched(TEMPERATURE_AT, f32::NAN.to_le_bytes()),
            "NaN or infinity",
        ),
        lie(
            "a cursor of a megabyte",
            |sent| block(sent, 2).cursor = vec![0; 1 << 20].into(),
            "cursor of 1048576 bytes",
        ),
        lie(
            "no cursor",
            |sent| block(sent, 2).cursor = Default::default(),
            "cursor of 0 bytes",
        ),
    ]
}

fn lies_about_the_order() -> Vec<StreamLie> {
    let beat = |sequences_done| event(Event::Heartbeat(Heartbeat { sequences_done }));
    vec![
        lie(
            "a frame twice",
            |sent| sent.insert(2, sent[1].clone()),
            "expected frame 1, the teacher sent 0",
        ),
        lie(
            "a frame left out",
            |sent| drop(sent.remove(2)),
            "expected frame 1, the teacher sent 2",
        ),
        lie(
            "another digest",
            |sent| end(sent).digest = vec![0; 32].into(),
            "digest",
        ),
        lie(
            "half of the digest",
            |sent| {
                let half = end(sent).digest.slice(..16);
                end(sent).digest = half;
            },
            "digest",
        ),
        lie(
            "another count",
            |sent| end(sent).count += 1,
            "counts 5 frames",
        ),
        lie(
            "the end too early",
            |sent| drop(sent.drain(3..5)),
            "2 arrived",
        ),
        lie(
            "more done than there is",
            move |sent| sent.insert(2, beat(99)),
            "99 sequences done of 4",
        ),
    ]
}

#[tokio::test]
async fn every_lie_in_a_stream_is_found_and_named() {
    for (lie, change, expected) in lies_in_frames().into_iter().chain(lies_about_the_order()) {
        let mock = MockTeacher::start(FRAMES).await;
        mock.lie_in_streams(move |_, sent| change(sent));
        assert_found(&mock, lie, expected).await;
    }
}

#[tokio::test]
async fn heartbeats_without_end_are_not_waited_for() {
    let mock = MockTeacher::start(FRAMES).await;
    mock.send_heartbeats_for_ever();
    assert_found(&mock, "heartbeats", "nothing but heartbeats").await;
}

#[tokio::test]
async fn frames_beyond_the_handshake_and_sums_unlike_it_are_found() {
    type Change = fn(&mut v1::GetServerInfoResponse);
    let lies: [(&str, Change, &str); 5] = [
        (
            "fewer frames",
            |info| info.sequence_count = 3,
            "after all 3",
        ),
        (
            "more frames",
            |info| info.sequence_count = 5,
            "5 in the handshake",
        ),
        (
            "fewer tokens",
            |info| info.token_count -= 1,
            "14 tokens and 10 targets",
        ),
        (
            "more targets",
            |info| info.target_count += 1,
            "14 tokens and 10 targets",
        ),
        (
            "shorter sequences",
            |info| {
                info.seq_len = 4;
            },
            "5 tokens, 4 at most",
        ),
    ];
    for (lie, change, expected) in lies {
        let mock = MockTeacher::start(FRAMES).await;
        mock.lie_about_itself(move |_, info| change(info));
        let (_, ended) = pass(&mock, options()).await;
        let message = ended.expect_err(lie).to_string();
        assert!(message.contains(expected), "{lie}: {message}");
    }
}

#[tokio::test]
async fn another_second_pass_is_found() {
    let mock = MockTeacher::start(FRAMES).await;
    let options = options();
    let (used, ended) = pass(&mock, options.clone()).await;
    ended.unwrap();
    assert_eq!(used.len() as u64, FRAMES);
    let change = forged(|frame| frame.rows.mean = vec![0.25; frame.rows.rows]);
    mock.lie_in_streams(move |_, sent| {
        change(sent);
        let mut digest = blake3::Hasher::new();
        for index in 0..FRAMES as usize {
            digest.update(&block(sent, index).frame);
        }
        end(sent).digest = digest.finalize().as_bytes().to_vec().into();
    });
    let (used, ended) = pass(&mock, options).await;
    let message = ended.unwrap_err().to_string();
    assert!(message.contains("the pass before"), "{message}");
    assert!((used.len() as u64) < FRAMES);
}

#[tokio::test]
async fn other_words_after_a_reconnection_are_found() {
    type Change = fn(&mut v1::GetServerInfoResponse);
    let lies: [(&str, Change); 9] = [
        ("plan fingerprint after reconnecting", |info| {
            info.plan_fingerprint = Fingerprint::of(b"other").to_hex();
        }),
        ("corpus fingerprint after reconnecting", |info| {
            info.corpus_fingerprint = Fingerprint::of(b"other").to_hex();
        }),
        ("model fingerprint", |info| {
            info.model_fingerprint = Fingerprint::of(b"other").to_hex();
        }),
        ("vocabulary fingerprint", |info| {
            info.vocabulary_fingerprint = Fingerprint::of(b"other").to_hex();
        }),
        ("estimator", |info| {
            info.estimator = v1::Estimator::Sampled.into()
        }),
        ("top_k", |info| info.top_k = 3),
        ("temperatures", |info| info.temperatures = vec![2.0]),
        ("sequence_count", |info| info.sequence_count = 3),
        ("state", |info| info.state_rank = 2),
    ];
    for (field, change) in lies {
        let mock = MockTeacher::start(FRAMES).await;
        mock.drop_before_frames([2]);
        mock.lie_about_itself(move |streams, info| {
            if streams > 0 {
                change(info);
            }
        });
        assert_found(&mock, field, field).await;
    }
}

#[tokio::test]
async fn a_cursor_that_goes_back_is_found_at_the_next_connection() {
    let mock = MockTeacher::start(FRAMES).await;
    mock.drop_before_frames([2]);
    mock.lie_in_streams(|streams, sent| {
        if streams == 1 {
            let first = block(sent, 0).cursor.clone();
            block(sent, 1).cursor = first;
        }
    });
    assert_found(&mock, "cursor", "expected frame 2, the teacher sent 1").await;
}
