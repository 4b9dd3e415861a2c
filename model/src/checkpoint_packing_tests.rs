//! Tests of packed documents: hidden states and gradients are those of the documents one by one.

use super::*;

const LENGTHS: [usize; 4] = [5, 70, 1, 33];

fn documents() -> Vec<Vec<u32>> {
    let document = |(seed, length): (usize, &usize)| {
        (0..*length)
            .map(|i| ((i * i + seed * 11 + 3 * i) % 96) as u32)
            .collect()
    };
    LENGTHS.iter().enumerate().map(document).collect()
}

fn row(ids: &[u32]) -> Tensor {
    Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap()
}

fn upstream() -> Tensor {
    random(&[1, LENGTHS.iter().sum(), 64], 9)
}

/// Each document in a pass of its own.
fn one_by_one(decoder: &Decoder) -> (Vec<f32>, Gradients) {
    let (mut hidden, mut gradients, mut start) = (Vec::new(), Gradients::new(), 0);
    for document in documents() {
        let tape = decoder.checkpointed(&row(&document)).unwrap();
        hidden.extend(values(tape.hidden()));
        let grad = upstream().narrow(1, start, document.len()).unwrap();
        tape.backward(&grad, &mut gradients).unwrap();
        start += document.len();
    }
    (hidden, gradients)
}

#[track_caller]
fn assert_close(actual: &Gradients, expected: &Gradients) {
    assert_eq!(actual.len(), expected.len());
    for (name, gradient) in actual.iter() {
        let expected = expected.get(name).unwrap();
        let size = values(expected)
            .into_iter()
            .fold(0f32, |max, x| max.max(x.abs()));
        let difference = largest_difference(gradient, expected);
        assert!(difference <= 1e-5 * size, "{name}: {difference} of {size}");
    }
}

#[test]
fn packed_documents_equal_the_documents_one_by_one() {
    let models = [TinyModel::qwen2(), TinyModel::qwen3(), TinyModel::mistral()];
    let ways = [lora(Base::QuantizeNf4), lora(Base::AsStored), everything()];
    for (model, options) in models
        .iter()
        .flat_map(|model| ways.iter().map(move |way| (model, way)))
    {
        let decoder = load(model.clone(), options);
        let (hidden, expected) = one_by_one(&decoder);
        let packed = row(&documents().concat());
        let graph = decoder.packed_forward_graph(&packed, &LENGTHS).unwrap();
        for checkpointing in [
            Checkpointing::Off,
            Checkpointing::Every(1),
            Checkpointing::Every(2),
        ] {
            let tape = decoder
                .packed_tape(&packed, &LENGTHS, checkpointing)
                .unwrap();
            let pairs = values(tape.hidden()).into_iter().zip(&hidden);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
            assert!(largest_difference(tape.hidden(), &graph) < 1e-5);
            let mut gradients = Gradients::new();
            tape.backward(&upstream(), &mut gradients).unwrap();
            assert_close(&gradients, &expected);
        }
    }
}

#[test]
fn packed_gradients_equal_central_differences() {
    let decoder = load(TinyModel::llama(), &lora(Base::AsStored));
    let packed = row(&documents().concat());
    let tape = || {
        decoder
            .packed_tape(&packed, &LENGTHS, Checkpointing::Off)
            .unwrap()
    };
    let mut gradients = Gradients::new();
    tape().backward(&upstream(), &mut gradients).unwrap();
    let weights = values(&upstream());
    let loss = || -> f64 {
        let products = values(tape().hidden()).into_iter().zip(&weights);
        products.map(|(h, w)| f64::from(h) * f64::from(*w)).sum()
    };
    for (name, var) in decoder.parameters().into_iter().step_by(5) {
        let original = values(&var);
        let at = original.len() / 3;
        let shifted = |by: f32| {
            let mut moved = original.clone();
            moved[at] += by;
            let moved = Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap();
            var.set(&moved).unwrap();
            loss()
        };
        let expected = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
        shifted(0.0);
        let gradient = f64::from(values(gradients.get(&name).unwrap())[at]);
        // As for whole rows: f32 errors of 7,000 outputs, divided by 2e-2.
        let tolerance = 2e-2 * expected.abs().max(1.0);
        assert!(
            (gradient - expected).abs() < tolerance,
            "{name}: {gradient}, {expected}"
        );
    }
}

#[test]
fn a_document_does_not_notice_its_neighbours() {
    let decoder = load(TinyModel::qwen2(), &lora(Base::AsStored));
    let mut documents = documents();
    let hidden = |documents: &[Vec<u32>]| {
        let packed = row(&documents.concat());
        let tape = decoder
            .packed_tape(&packed, &LENGTHS, Checkpointing::Every(1))
            .unwrap();
        values(tape.hidden())
    };
    let before = hidden(&documents);
    documents[0].iter_mut().for_each(|id| *id = (*id + 1) % 96);
    let after = hidden(&documents);
    let first = LENGTHS[0] * 64;
    assert_ne!(before[..first], after[..first]);
    assert_eq!(before[first..], after[first..]);
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let decoder = load(TinyModel::qwen2(), &lora(Base::AsStored));
    let packed = row(&documents().concat());
    for lengths in [&[5, 70][..], &[5, 70, 0, 34], &[], &[usize::MAX, 2]] {
        let error = decoder
            .packed_tape(&packed, lengths, Checkpointing::Off)
            .unwrap_err();
        assert!(error.to_string().contains("packed"), "{error}");
    }
}
