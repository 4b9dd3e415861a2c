//! Provides the teacher's parts: its weights, a batch on its way through the layers, a chunk of logits.

use super::{
    config::{Place, PlanConfig},
    counts::Counts,
    held::{Held, HeldHead},
    layer::Layer,
    pair::{Shape, Stored},
    part::{Part, Phase, Process},
    process::{Base, slack},
};
use crate::Result;
use distill_model::HEAD_TILE_ROWS;

const F32: u64 = 4;

/// The teacher's process.
///
/// # Errors
/// Never, for a shape that could be read.
pub fn teacher(shape: &Shape, config: &PlanConfig) -> Result<Process> {
    let counts = Counts::new(&shape.model, None)?;
    let (place, element) = (config.place(), config.teacher_element());
    let (options, model) = (&config.options, &shape.model);
    let tokens = config.seq_len() * options.teacher_batch_size as u64;
    let linears = counts.layers.first().map_or(&[][..], Vec::as_slice);
    let layer = Layer::new(model, linears);
    let (d, vocab_size) = (model.hidden_size as u64, model.vocab_size as u64);
    let held = match &shape.packed {
        Some(packed) => packed.held(place, element),
        None => held(shape.stored, &counts, layer, place, element),
    };
    let chunk = (options.teacher_chunk_rows as u64).min(tokens) * vocab_size;
    let chunk = match (held.head, place, element) {
        (HeldHead::Packed { in_parts: true }, ..) => 2 * F32 * chunk,
        // On a card the product comes in f32 whatever the model's type.
        (HeldHead::Packed { .. }, ..) | (_, Place::Card, _) | (_, _, F32) => F32 * chunk,
        // Put together from parts of a widened head.
        (_, Place::Cpu, _) => 2 * F32 * chunk + F32 * (HEAD_TILE_ROWS as u64).min(vocab_size) * d,
    };
    let state = F32 * tokens * config.state_rank(Some(model));
    let mut parts = vec![
        Part::always("weights", held.bytes),
        Part::on_host("embedding, in the machine's memory", held.host_bytes),
        Part::always("metadata of the open file", held.metadata_bytes),
        Part::during(
            "one layer's activations",
            tokens * layer.forward(element),
            &[Phase::Layers],
        ),
        Part::during(
            "weights of a layer, dequantised",
            held.layer_tile,
            &[Phase::Layers],
        ),
        Part::during(
            "weights of the head, dequantised",
            held.head_tile,
            &[Phase::Logits],
        ),
        Part::during(
            "hidden states",
            2 * tokens * d * element + state,
            &[Phase::Logits],
        ),
        Part::during("logits of a chunk", chunk, &[Phase::Logits]),
    ];
    let (reading, bytes) = held.reading;
    parts.push(Part::during(reading, bytes, &[Phase::Loading]));
    // Its process goes on while the trainer computes.
    let base = Base { place, vocab_size }.parts();
    parts.extend(base.into_iter().map(Part::staying));
    Ok(Process::new("teacher", parts, slack(place)))
}

/// Weights of a directory: linears in four bits or in `element` bytes, everything else in these.
fn held(stored: Stored, counts: &Counts, layer: Layer<'_>, place: Place, element: u64) -> Held {
    let bytes = |element: u64| {
        let linears = match stored.four_bit {
            Some(scales) => counts.four_bit_bytes(scales),
            None => counts.linear_elements() * element,
        };
        linears + counts.dense_elements() * element
    };
    let held = Held {
        bytes: bytes(element),
        ..Held::default()
    };
    match place {
        Place::Card => Held {
            layer_tile: match stored.four_bit {
                Some(_) => layer.largest_linear() * element,
                None => 0,
            },
            ..held
        },
        // A file is read in pieces, and converted piece by piece.
        Place::Cpu => held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ComputeDtype, plan::Pair};

    #[test]
    fn the_reference_teacher_by_hand() {
        let shape = Pair::reference().unwrap().teacher.unwrap();
        let mut config = PlanConfig::default();
        let process = teacher(&shape, &config).unwrap();
        assert_eq!(process.bytes_of("weights"), 2 * 7_615_616_512);
        // 512 tokens: stream and norm in f32 twice each, norm in bf16 twice, three matrices of the MLP.
        let layer = 512 * (16 * 3584 + 4 * 3584 + 6 * 18944);
        assert_eq!(process.bytes_of("one layer's activations"), layer);
        assert_eq!(process.bytes_of("logits of a chunk"), 4 * 128 * 152_064);
        assert_eq!(process.bytes_of("hidden states"), 4 * 512 * 3584);
        assert_eq!(process.stays_bytes, 450 << 20);

        config.options.teacher_dtype = ComputeDtype::F32;
        config.options.teacher_batch_size = 2;
        let wide = teacher(&shape, &config).unwrap();
        assert_eq!(wide.bytes_of("weights"), 4 * 7_615_616_512);
        let layer = 1024 * (16 * 3584 + 8 * 3584 + 12 * 18944);
        assert_eq!(wide.bytes_of("one layer's activations"), layer);
    }

    #[test]
    fn on_the_cpu_nothing_of_the_file_counts_while_it_is_read() {
        let shape = Pair::reference().unwrap().teacher.unwrap();
        let mut config = PlanConfig::default();
        config.train.device = "cpu".into();
        let process = teacher(&shape, &config).unwrap();
        assert_ne!(process.peak_phase, Phase::Loading);
        assert_eq!(process.bytes_of("weights"), 4 * 7_615_616_512);
    }
}
