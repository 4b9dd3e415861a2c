//! Properties of the codec: valid frames round-trip, and no bytes make the decoder panic.

use proptest::prelude::*;

use super::{
    tests::{assert_read, context, sample, settle_padding},
    *,
};
use crate::{
    Estimator, FieldRange, Link, PADDING_COUNT, State, StateCoding, StateKind, ValueCoding, View,
};

/// Settings of a random frame.
#[derive(Clone, Debug)]
struct Settings {
    mask: Vec<bool>,
    vocab: u32,
    k: usize,
    coding: ValueCoding,
    estimator: Estimator,
    temperatures: Vec<f32>,
    state: Option<(StateKind, StateCoding, usize, usize)>,
    text: String,
    view: Option<View>,
    seed: u64,
}

fn settings() -> impl Strategy<Value = Settings> {
    let coding = prop_oneof![
        Just(ValueCoding::F16),
        prop::sample::select(vec![0.01f32, 0.125, 1.0]).prop_map(ValueCoding::Step),
        prop::sample::select(vec![1u16, 48, 64, 1000, 1024])
            .prop_map(|units| ValueCoding::Graded(f32::from(units) * ValueCoding::GRADE))
    ];
    let estimator = prop::sample::select(Estimator::ALL.to_vec());
    let kind = prop::sample::select(vec![StateKind::Exact, StateKind::Sketch, StateKind::Hidden]);
    let state_coding = prop::sample::select(vec![StateCoding::F16, StateCoding::I8]);
    let shape = (1u32..70).prop_flat_map(|vocab| (Just(vocab), 1..=vocab as usize));
    (
        prop::collection::vec(any::<bool>(), 0..12),
        shape,
        coding,
        estimator,
        prop::collection::vec(prop::sample::select(vec![0.5f32, 1.0, 2.0, 4.0]), 0..4),
        prop::option::of((kind, state_coding, 1usize..9, 1usize..4)),
        "[a-z世é😀 ]{0,30}",
        prop::option::of(view()),
        any::<u64>(),
    )
        .prop_map(
            |(targets, (vocab, k), coding, estimator, temperatures, state, text, view, seed)| {
                Settings {
                    mask: std::iter::once(false).chain(targets).collect(),
                    vocab,
                    k,
                    coding,
                    estimator,
                    temperatures,
                    state,
                    text,
                    view,
                    seed,
                }
            },
        )
}

/// Any view of a text, which may be empty: of its bytes only what every text has is named.
fn view() -> impl Strategy<Value = View> {
    let range = || ("[a-z\\[\\].0-9é]{1,20}", any::<u32>(), any::<u32>());
    let link = range().prop_map(|(field, a, b)| Link {
        teacher: (0, 0),
        student: FieldRange {
            field,
            start: a.min(b),
            end: a.max(b),
        },
    });
    let links = || prop::collection::vec(link.clone(), 0..4);
    (".{1,40}", any::<bool>(), links(), links()).prop_map(|(record, prompts, shared, links)| View {
        record,
        prompts,
        shared,
        links,
    })
}

/// A frame whose rows are what a teacher would say of random dense logits.
fn frame(settings: &Settings) -> Frame {
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::index::sample};
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let (vocab, k) = (settings.vocab as usize, settings.k);
    let count = settings.mask.iter().filter(|&&target| target).count();
    let state = settings.state.map(|(kind, coding, rank, layers)| {
        let layers = if kind == StateKind::Hidden { layers } else { 1 };
        (kind, coding, rank * layers, layers)
    });
    let mut rows = Rows {
        rows: count,
        k,
        vocab_size: settings.vocab,
        estimator: settings.estimator,
        coding: settings.coding,
        ids: vec![],
        logits: vec![],
        counts: vec![],
        max: vec![],
        mean: vec![],
        std: vec![],
        temperatures: settings.temperatures.clone(),
        logsumexp: vec![vec![]; settings.temperatures.len()],
        state: state.map(|(kind, coding, rank, layers)| State {
            kind,
            coding,
            rank,
            layers,
            values: (0..count * rank)
                .map(|_| rng.random_range(-30.0..30.0))
                .collect(),
        }),
    };
    for _ in 0..count {
        let logits: Vec<f32> = (0..vocab).map(|_| rng.random_range(-40.0..40.0)).collect();
        let mut ids = sample(&mut rng, vocab, k).into_vec();
        ids.sort_unstable();
        rows.logits.extend(ids.iter().map(|&id| logits[id]));
        rows.ids.extend(ids.iter().map(|&id| id as u32));
        if settings.estimator.is_drawn() {
            rows.counts
                .extend((0..k).map(|entry| match rng.random_range(0..5) {
                    _ if entry == 0 => 1,
                    4 if settings.estimator == Estimator::HeadSampled => PADDING_COUNT,
                    count => count,
                }));
        }
        rows.max
            .push(logits.iter().copied().fold(f32::MIN, f32::max));
        rows.mean.push(logits.iter().sum::<f32>() / vocab as f32);
        rows.std.push(rng.random_range(0.0..9.0));
        for (column, tau) in rows.logsumexp.iter_mut().zip(&rows.temperatures) {
            let terms = logits.iter().map(|y| f64::from(y / tau).exp());
            column.push(terms.sum::<f64>().ln() as f32);
        }
    }
    if settings.estimator.is_drawn() {
        settle_padding(&mut rows);
    }
    let end = settings.text.len() as u32;
    let byte_offsets = settings.mask.iter().map(|_| {
        let start = rng.random_range(0..=end);
        (start, rng.random_range(start..=end))
    });
    Frame {
        sequence_id: settings.seed,
        index: 5,
        text_digest: Fingerprint::of(settings.text.as_bytes()),
        text: settings.text.clone(),
        byte_offsets: byte_offsets.collect(),
        token_ids: settings.mask.iter().map(|_| rng.random()).collect(),
        target_mask: settings.mask.clone(),
        rows,
        view: settings.view.clone(),
    }
}

proptest! {
    #[test]
    fn valid_frames_round_trip(settings in settings()) {
        let frame = frame(&settings);
        let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
        assert_read(&read, &frame);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), honest in any::<bool>()) {
        let mut bytes = bytes;
        if honest && bytes.len() > HEADER_BYTES {
            bytes[..4].copy_from_slice(&header::MAGIC);
            let version = if bytes[68..72] == [0; 4] { header::VERSION } else { header::VERSION_PAIRS };
            bytes[4..6].copy_from_slice(&version.to_le_bytes());
            bytes[6..12].copy_from_slice(&[1, 1, 1, 0, 0, 1]);
        }
        prop_assert!(Frame::decode(&bytes, &context(5)).is_err());
    }

    #[test]
    fn noise_behind_an_honest_checksum_never_panics(noise in proptest::collection::vec(any::<u8>(), 1..200), at in 0usize..2000, sampled in any::<bool>(), view in prop::option::of(view())) {
        let mut frame = sample(20, 8, 300, ValueCoding::GRADED, Some(StateCoding::I8));
        frame.view = view;
        if sampled {
            frame.rows.estimator = Estimator::Sampled;
            frame.rows.counts = (0..160).map(|entry| entry % 4 + u32::from(entry % 8 == 0)).collect();
        }
        let mut bytes = frame.encode(&context(5)).unwrap();
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        let start = HEADER_BYTES + 8 + at % (bytes.len() - HEADER_BYTES - 8);
        for (byte, noise) in bytes.iter_mut().skip(start).zip(noise) { *byte = noise; }
        bytes.extend(checksum(&bytes, &context(5)));
        if let Ok(read) = Frame::decode(&bytes, &context(5)) {
            prop_assert!(read.validate().is_ok());
        }
    }
}
