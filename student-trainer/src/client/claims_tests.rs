//! Provides the tests against a teacher that lies about itself, its basis and its scores: each lie is refused by name.

use std::time::Duration;

use distill_proto::{
    Estimator, FORMAT_VERSION_PAIRS, Frame, FrameContext,
    v1::{self, Block},
};

use super::{
    SequenceToScore, Teacher, fetch_basis,
    mock::{MockTeacher, encoded, made_up_frame},
    scored,
};
use crate::shutdown::Shutdown;

/// Longest that any lie may keep a trainer.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_handshake_that_no_teacher_means_is_refused_by_field() {
    type Change = fn(&mut v1::GetServerInfoResponse);
    let lies: [(&str, Change); 29] = [
        ("frame format version", |info| {
            info.format_version = FORMAT_VERSION_PAIRS + 1
        }),
        ("effective_vocab_size is 0", |info| {
            info.effective_vocab_size = 0
        }),
        ("effective_vocab_size is 4294967295", |info| {
            info.effective_vocab_size = u32::MAX;
        }),
        ("head_rows is 31", |info| info.head_rows = 31),
        ("top_k is 0", |info| info.top_k = 0),
        ("top_k is 33", |info| info.top_k = 33),
        ("top_k is 4294967295", |info| info.top_k = u32::MAX),
        ("estimator", |info| info.estimator = 17),
        ("number of temperatures is 0", |info| {
            info.temperatures.clear()
        }),
        ("number of temperatures is 17", |info| {
            info.temperatures = vec![1.0; 17]
        }),
        ("temperatures is NaN", |info| {
            info.temperatures.push(f32::NAN)
        }),
        ("temperatures is 0", |info| info.temperatures.push(0.0)),
        ("temperatures is -1", |info| info.temperatures.push(-1.0)),
        ("temperatures is inf", |info| {
            info.temperatures.push(f32::INFINITY)
        }),
        ("paired_sequences is 99", |info| info.paired_sequences = 99),
        ("paired_without_shared is 1", |info| {
            info.paired_without_shared = 1
        }),
        ("state_rank is 0", |info| info.state_rank = 0),
        ("state_rank is 4294967295", |info| {
            info.state_rank = u32::MAX
        }),
        ("state_layer is 3", |info| info.state_layer = 3),
        ("number of state_layers is 1", |info| {
            info.state_layers = vec![3]
        }),
        ("state_layers is [2, 2]", |info| {
            info.set_state_kind(v1::StateKind::Hidden);
            (info.state_rank, info.state_layers) = (8, vec![2, 2]);
        }),
        ("state_rank is 9", |info| {
            info.set_state_kind(v1::StateKind::Hidden);
            (info.state_rank, info.state_layers) = (9, vec![0, 2]);
        }),
        ("state_error is NaN", |info| info.state_error = f32::NAN),
        ("seq_len is 4294967295", |info| info.seq_len = u32::MAX),
        ("sequence_count is 18446744073709551615", |info| {
            info.sequence_count = u64::MAX;
        }),
        ("token_count is 18446744073709551615", |info| {
            info.token_count = u64::MAX
        }),
        ("target_count is 15", |info| {
            info.target_count = info.token_count + 1
        }),
        ("model_name", |info| {
            info.model_name = "gpt\u{1b}]0;owned\u{7}".into()
        }),
        ("server_version", |info| {
            info.server_version = "0.1\u{202e}".repeat(2)
        }),
    ];
    for (expected, change) in lies {
        let mock = MockTeacher::start(4).await;
        mock.lie_about_itself(move |_, info| change(info));
        let teacher = Teacher::connect(&mock.connect_options(), &Shutdown::default())
            .await
            .unwrap();
        let told = teacher.info().await;
        let message = told.expect_err(expected).to_string();
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(!message.contains(['\u{1b}', '\u{202e}']), "{message:?}");
    }
}

#[tokio::test]
async fn a_basis_of_another_shape_is_refused() {
    type Change = fn(&mut Vec<v1::GetBasisResponse>);
    let lies: [(&str, Change); 7] = [
        ("another rank", |chunks| chunks[1].rank = 2),
        ("other rows", |chunks| chunks[1].first_row = 0),
        ("a chunk left out", |chunks| drop(chunks.remove(1))),
        ("too few rows", |chunks| drop(chunks.pop())),
        ("too many rows", |chunks| chunks.push(chunks[0].clone())),
        ("chunks of nothing", |chunks| {
            let nothing = v1::GetBasisResponse {
                rows: 0,
                first_row: 10,
                values_f16: Default::default(),
                ..chunks[0].clone()
            };
            drop(chunks.splice(1..1, std::iter::repeat_n(nothing, 1 << 12)));
        }),
        ("no numbers", |chunks| {
            let bytes = chunks[1].values_f16.len();
            chunks[1].values_f16 = vec![0x7e; bytes].into();
        }),
    ];
    for (lie, change) in lies {
        let mock = MockTeacher::start(1).await;
        mock.lie_about_the_basis(move |_, chunks| change(chunks));
        let teacher = Teacher::connect(&mock.connect_options(), &Shutdown::default())
            .await
            .unwrap();
        let info = teacher.info().await.unwrap();
        let fetched = tokio::time::timeout(PATIENCE, fetch_basis(&teacher, &info)).await;
        let message = fetched.expect("hangs").expect_err(lie).to_string();
        assert!(message.contains("GetBasis"), "{lie}: {message}");
    }
}

#[tokio::test]
async fn scores_of_something_else_are_refused() {
    let asked = made_up_frame(2);
    let answer = |frame: &Frame| Block {
        frame: encoded(frame),
        index: frame.index,
        ..Block::default()
    };
    let with = |change: &dyn Fn(&mut Frame)| {
        let mut frame = asked.clone();
        change(&mut frame);
        answer(&frame)
    };
    let lies = [
        ("none", vec![], "0 of 1 sequences"),
        (
            "two",
            vec![answer(&asked), answer(&asked)],
            "2 of 1 sequences",
        ),
        (
            "another sequence",
            vec![answer(&made_up_frame(1))],
            "other tokens",
        ),
        (
            "a longer one",
            vec![answer(&made_up_frame(9))],
            "11 tokens, 4 at most",
        ),
        (
            "other tokens",
            vec![with(&|frame: &mut Frame| frame.token_ids[1] ^= 1)],
            "other tokens",
        ),
        (
            "another estimator",
            vec![with(&|frame: &mut Frame| {
                frame.rows.estimator = Estimator::Sampled;
                frame.rows.counts = vec![1; frame.rows.ids.len()];
            })],
            "estimator: Sampled",
        ),
        (
            "another place",
            vec![Block {
                index: 7,
                ..answer(&asked)
            }],
            "",
        ),
    ];
    let mock = MockTeacher::start(1).await;
    let shutdown = Shutdown::default();
    let teacher = Teacher::connect(&mock.connect_options(), &shutdown)
        .await
        .unwrap();
    let info = teacher.info().await.unwrap();
    let question = [SequenceToScore {
        token_ids: &asked.token_ids,
        target_mask: &asked.target_mask,
    }];
    let score = || async {
        let answer = teacher.ask_to_score(&info, &question, 0, &shutdown).await?;
        scored(&info, &question, &answer)
    };
    mock.set_scores(vec![answer(&asked)]);
    let context = FrameContext {
        plan: info.plan,
        shard: 0,
        index: 2,
    };
    let truth = Frame::decode(&encoded(&asked), &context).unwrap().rows;
    assert_eq!(score().await.unwrap(), [truth]);
    for (lie, blocks, expected) in lies {
        mock.set_scores(blocks);
        let message = score().await.expect_err(lie).to_string();
        assert!(message.contains(expected), "{lie}: {message}");
    }
}
