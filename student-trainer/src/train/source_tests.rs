use super::*;
use crate::client::{self, mock::MockTeacher};

/// Indices of the frames of two passes over five, two at a time, put into order `buffer` at a time, with a new source after
/// `stop_after` takes.
fn indices(buffer: usize, stop_after: Option<usize>) -> (Vec<Vec<u64>>, DataCursor) {
    let (all, cursor, _) = indices_of(Share::ALL, 2, buffer, stop_after);
    (all, cursor)
}

/// Of one rank, in steps of so many; with the number of frames that were sent to it.
fn indices_of(
    share: Share,
    step: usize,
    buffer: usize,
    stop_after: Option<usize>,
) -> (Vec<Vec<u64>>, DataCursor, usize) {
    let runtime = client::runtime().unwrap();
    let mock = runtime.block_on(MockTeacher::start(5));
    let connect = || {
        let shutdown = Shutdown::default();
        runtime.block_on(async {
            let teacher = Teacher::connect(&mock.connect_options(), &shutdown).await;
            let teacher = teacher.unwrap();
            let info = teacher.info().await.unwrap();
            (teacher, info, shutdown)
        })
    };
    let source = |cursor: DataCursor| {
        let (teacher, info, shutdown) = connect();
        let options = StreamOptions {
            prefetch_frames: 3,
            reconnect_attempts: 1,
            token_ids: 1000,
            ..StreamOptions::default()
        };
        let handle = runtime.handle().clone();
        let order = Order {
            buffer,
            seed: 7,
            step,
            share,
        };
        FrameSource::new(handle, teacher, info, options, order, shutdown, cursor)
    };
    let mut frames = source(DataCursor::default());
    let mut all = Vec::new();
    for take in 0..2 * 5usize.div_ceil(step) {
        if Some(take) == stop_after {
            // As state.toml would carry it.
            let text = toml::to_string(frames.cursor()).unwrap();
            frames = source(toml::from_str(&text).unwrap());
        }
        let Next::Frames(taken) = frames.next(step, None).unwrap() else {
            panic!("the frames stopped");
        };
        all.push(taken.iter().map(|one| one.context.index).collect());
    }
    (all, frames.cursor().clone(), mock.frames_sent())
}

#[test]
fn a_source_that_starts_behind_a_cursor_loses_and_repeats_nothing() {
    let whole = indices(1, None);
    let pass = [vec![0, 1], vec![2, 3], vec![4]];
    assert_eq!(whole.0, [pass.clone(), pass].concat());
    assert_eq!(whole.1.frames, 10);
    for buffer in [1, 2, 3, 5, 100] {
        let whole = indices(buffer, None);
        for stop_after in 0..6 {
            assert_eq!(
                indices(buffer, Some(stop_after)),
                whole,
                "{buffer}, after {stop_after} takes"
            );
        }
    }
}

#[test]
fn every_pass_has_every_frame_in_an_order_of_its_own() {
    let (taken, cursor) = indices(100, None);
    let passes: Vec<Vec<u64>> = taken.chunks(3).map(<[_]>::concat).collect();
    assert!(passes[0] != passes[1], "{passes:?}");
    for mut pass in passes {
        assert!(pass != [0, 1, 2, 3, 4], "{pass:?}");
        pass.sort_unstable();
        assert_eq!(pass, [0, 1, 2, 3, 4]);
    }
    assert_eq!((cursor.frames, cursor.taken), (10, 0));
    // Those that are not taken together stay in the teacher's order among each other.
    let (taken, _) = indices(2, None);
    let mut first: Vec<u64> = taken[0].clone();
    first.sort_unstable();
    assert_eq!(first, [0, 1]);
    assert_eq!(taken[2], [4]);
}

#[test]
fn every_frame_of_a_step_is_one_rank_s_and_no_other_is_sent() {
    for (step, buffer, stop_after) in [
        (2, 1, None),
        (4, 1, Some(1)),
        (3, 4, None),
        (3, 4, Some(1)),
        (4, 100, Some(3)),
    ] {
        let whole = indices_of(Share::ALL, step, buffer, stop_after);
        for of in [2, 3] {
            let ranks: Vec<_> = (0..of)
                .map(|rank| indices_of(Share { rank, of }, step, buffer, stop_after))
                .collect();
            for (step, frames) in whole.0.iter().enumerate() {
                let of_ranks: Vec<u64> = ranks.iter().flat_map(|one| one.0[step].clone()).collect();
                assert_eq!(&of_ranks, frames, "{of} ranks, step {step}");
            }
            let kept = |one: &(Vec<Vec<u64>>, DataCursor, usize)| one.0.concat().len();
            for one in &ranks {
                assert_eq!(one.1, whole.1);
                // What was held ready when it stopped is asked for again.
                let again = if stop_after.is_some() { 5 } else { 0 };
                assert!(
                    (kept(one)..=kept(one) + again).contains(&one.2),
                    "{}",
                    one.2
                );
            }
        }
    }
}

#[test]
fn a_cursor_that_is_none_is_an_error() {
    assert!(from_hex("0g").is_err() && from_hex("012").is_err());
    assert_eq!(from_hex("00ff").unwrap(), Bytes::from_static(&[0, 255]));
}
