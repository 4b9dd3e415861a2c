//! Tests of the entropy coder: what is written is read, and nothing else is taken for it.

use proptest::prelude::*;

use super::*;

/// Something to code.
#[derive(Clone, Debug)]
enum Item {
    Flag(bool),
    Number { context: usize, value: u32 },
    Raw { bits: u32, value: u32 },
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    // Numbers of every length alike.
    let number =
        (0usize..3, 0u32..=32, any::<u32>()).prop_map(|(context, bits, value)| Item::Number {
            context,
            value: value.checked_shr(32 - bits).unwrap_or(0),
        });
    let raw = (0u32..=32, any::<u32>()).prop_map(|(bits, value)| Item::Raw {
        bits,
        value: value.checked_shr(32 - bits).unwrap_or(0),
    });
    prop::collection::vec(
        prop_oneof![any::<bool>().prop_map(Item::Flag), number, raw],
        0..300,
    )
}

/// Codes the items and gives what comes of them.
fn code<C: Coder>(coder: &mut C, items: &[Item]) -> Vec<u32> {
    let (mut bit, mut number) = (Bit::new(128), Number::new(3, 3));
    let coded = items.iter().map(|item| match *item {
        Item::Flag(value) => bit.code(coder, || value).into(),
        Item::Number { context, value } => number.code(coder, context, context, || value),
        Item::Raw { bits, value } => coder.raw(bits, || value),
    });
    coded.collect()
}

proptest! {
    #[test]
    fn what_is_written_is_read(items in items()) {
        let mut encoder = Encoder::default();
        let written = code(&mut encoder, &items);
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes, 0).unwrap();
        prop_assert_eq!(code(&mut decoder, &items), written);
        prop_assert!(decoder.finish(0).is_ok());
        if bytes.len() > 8 {
            let mut short = Decoder::new(&bytes[..bytes.len() - 4], 0).unwrap();
            code(&mut short, &items);
            prop_assert!(short.finish(0).is_err());
        }
    }

    #[test]
    fn any_stream_reads_as_something_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), items in items()) {
        if let Ok(mut decoder) = Decoder::new(&bytes, 0) {
            code(&mut decoder, &items);
            let _ = decoder.finish(0);
        }
    }
}

#[test]
fn models_learn() {
    let size = |value: fn(u32) -> u32| {
        let mut encoder = Encoder::default();
        let mut number = Number::new(1, 1);
        for n in 0..4000 {
            number.code(&mut encoder, 0, 0, || value(n));
        }
        encoder.finish().len()
    };
    // Nearly nothing for what is always the same, and two bits for one of four.
    assert!(size(|_| 7) < 120, "{}", size(|_| 7));
    let four = size(|n| n.wrapping_mul(2_654_435_761) >> 30);
    assert!((950..1150).contains(&four), "{four}");
}
