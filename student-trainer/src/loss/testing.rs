//! Provides what the tests of the losses share: seeded numbers, a relative distance, and small teachers.

/// SplitMix64 with a normal transform: the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    pub(crate) fn normals(&mut self, count: usize, deviation: f64) -> Vec<f64> {
        let mut normal = || {
            let (r, angle) = (self.uniform(), self.uniform());
            deviation * (-2.0 * r.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
        };
        (0..count).map(|_| normal()).collect()
    }
}

/// Costs `[n, m]` that match positions sharply, as `1 - softmax(cosine / 0.05)` does: the hard case.
pub(crate) fn matching(n: usize, m: usize, random: &mut Random) -> Vec<f32> {
    let mut data = random.normals(n * m, 0.2);
    for i in 0..n {
        data[i * m + (i * m / n)] += 0.6;
    }
    let (rows, columns) = (n, m);
    let similarity = Matrix {
        rows,
        columns,
        data,
    };
    let cost = reference::softmax_cost(&similarity, 0.05);
    cost.data.iter().map(|&c| c as f32).collect()
}

/// `|a - b| / |b|`.
pub(crate) fn relative(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-300)
}

use candle_core::{DType, Device, Tensor};
use distill_kernels::{Emulator, MakeCalls, Module};
use distill_proto::{Estimator, State, StateCoding, StateKind};

use super::config::{AlignConfig, AlignLoss, Cost, LossConfig, Reduction, Similarity};
use super::dense;
use super::geometry::HeadGeometry;
use super::reference::{self, Matrix};
use super::targets::Targets;

/// A small student and teacher, the same numbers in f32 tensors and in f64.
pub(crate) struct Case {
    pub(crate) hidden: Matrix,
    pub(crate) head: Matrix,
    pub(crate) labels: Vec<u32>,
    pub(crate) teacher: reference::Teacher,
    pub(crate) targets: Targets,
    pub(crate) basis: Matrix,
}

/// Sizes of a [`Case`].
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) n: usize,
    pub(crate) m: usize,
    pub(crate) vocab: usize,
    pub(crate) d: usize,
    pub(crate) rank: usize,
    pub(crate) k: usize,
}

/// As many positions on both sides, and a part of the vocabulary kept.
pub(crate) const SQUARE: Sizes = Sizes {
    n: 5,
    m: 5,
    vocab: 13,
    d: 4,
    rank: 3,
    k: 4,
};

/// Rows that say nothing but the teacher's hidden states `[rows, rank]`.
pub(crate) fn hidden_targets(states: Vec<f32>, rows: usize) -> Targets {
    Targets {
        vocab_size: 1,
        estimator: Estimator::TopK,
        starts: (0..=rows).collect(),
        ids: vec![0; rows],
        logits: vec![0.0; rows],
        counts: Vec::new(),
        draws: Vec::new(),
        temperatures: Vec::new(),
        logsumexp: Vec::new(),
        mean: vec![0.0; rows],
        std: vec![1.0; rows],
        state: Some(State {
            kind: StateKind::Exact,
            coding: StateCoding::F16,
            rank: states.len() / rows,
            layers: 1,
            values: states,
        }),
        alignment: None,
    }
}

impl Case {
    pub(crate) fn new(sizes: Sizes, seed: u64) -> Self {
        let Sizes {
            n,
            m,
            vocab,
            d,
            rank,
            k,
        } = sizes;
        let mut random = Random::new(seed);
        let mut matrix = |rows: usize, columns: usize, deviation: f64| Matrix {
            rows,
            columns,
            // f32 numbers, so that both sides start from the same.
            data: random
                .normals(rows * columns, deviation)
                .into_iter()
                .map(|x| f64::from(x as f32))
                .collect(),
        };
        let (hidden, mut head) = (matrix(n, d, 1.0), matrix(vocab, d, 1.0));
        // A common part of the head's rows: raw and centred logits then differ.
        for row in head.data.chunks_mut(d) {
            row[0] += 0.75;
        }
        let (states, teacher_head) = (matrix(m, rank, 1.0), matrix(vocab, rank, 1.0));
        let mean: Vec<f64> = (0..rank)
            .map(|r| (0..vocab).map(|v| teacher_head.at(v, r)).sum::<f64>() / vocab as f64)
            .collect();
        let round = |x: f64| f64::from(x as f32);
        let basis = Matrix::from_fn(vocab, rank, |v, r| round(teacher_head.at(v, r) - mean[r]));
        // Offsets that only raw dots may see.
        let offsets: Vec<f64> = (0..m).map(|j| round(0.3 * j as f64 - 1.0)).collect();
        let plain = states.times_transposed(&basis);
        let logits = Matrix::from_fn(m, vocab, |j, v| round(plain.at(j, v) + offsets[j]));
        let rows = dense::compress(&tensor(&logits), k, &[1.0, 2.0]).unwrap();
        let mut targets = Targets::from_rows(&rows);
        targets.state = Some(State {
            kind: StateKind::Exact,
            coding: StateCoding::F16,
            rank,
            layers: 1,
            values: states.data.iter().map(|&c| c as f32).collect(),
        });
        let kept = rows.ids.chunks(k);
        let kept = kept
            .map(|ids| ids.iter().map(|&id| id as usize).collect())
            .collect();
        Self {
            labels: (0..n)
                .map(|_| (random.uniform() * vocab as f64) as u32)
                .collect(),
            teacher: reference::Teacher { logits, kept },
            hidden,
            head,
            targets,
            basis,
        }
    }

    pub(crate) fn geometry(&self) -> HeadGeometry {
        HeadGeometry::new(&tensor(&self.head), Some(&tensor(&self.basis))).unwrap()
    }

    /// The slow value as a function of the hidden states.
    pub(crate) fn value(&self, hidden: &Matrix, config: &LossConfig) -> f64 {
        let x = hidden.times_transposed(&self.head);
        reference::total(&x, &self.teacher, &self.labels, config)
    }
}

/// Every cost and similarity, paid in both ways for itself and on the plan of another one, in one problem and in blocks.
pub(crate) fn transports() -> Vec<AlignConfig> {
    let similarities = [
        (Similarity::ScaledDot, 0.5),
        (Similarity::CenteredDot, 0.5),
        (Similarity::Cosine, 0.2),
        (Similarity::Bhattacharyya, 0.1),
    ];
    let similarity = |(similarity, temperature)| AlignConfig {
        cost: Cost::SoftmaxSimilarity,
        similarity,
        temperature,
        ..AlignConfig::default()
    };
    let kl = AlignConfig {
        kappa: 4.0,
        ..AlignConfig::default()
    };
    let cosine = similarity(similarities[2]);
    let mut all = Vec::new();
    for own in similarities.map(similarity).into_iter().chain([kl.clone()]) {
        for loss in [AlignLoss::Entropic, AlignLoss::Sharp] {
            all.push(AlignConfig {
                loss,
                ..own.clone()
            });
        }
    }
    let squared = |other: &AlignConfig| AlignConfig {
        cost: Cost::SquaredEuclidean,
        ..other.clone()
    };
    for (plan, loss) in [
        (squared(&kl), AlignLoss::Entropic),
        (squared(&kl), AlignLoss::Sharp),
        (squared(&kl), AlignLoss::Kl),
        (squared(&cosine), AlignLoss::Similarity),
        (kl.clone(), AlignLoss::Kl),
        (cosine.clone(), AlignLoss::Kl),
        (
            AlignConfig {
                similarity: Similarity::Bhattacharyya,
                ..kl
            },
            AlignLoss::Similarity,
        ),
    ] {
        all.push(AlignConfig {
            loss,
            through_plan: true,
            ..plan
        });
    }
    // Blocks of 3 leave ragged ones of 2 and 1.
    let in_blocks = |align: AlignConfig| {
        [(0, Reduction::Mean), (3, Reduction::Sum)].map(|(block_size, reduction)| AlignConfig {
            block_size,
            reduction,
            position: Some(0.5),
            // Large enough for the reference, which has no Newton, to be quick.
            epsilon: 0.3,
            tolerance: 1e-9,
            ..align.clone()
        })
    };
    all.into_iter().flat_map(in_blocks).collect()
}

/// What a card would compute, by the emulator.
pub(crate) fn emulate(
    module: &'static Module,
    inputs: &[&Tensor],
    outputs: &[(DType, usize)],
    calls: MakeCalls<'_>,
) -> candle_core::Result<Vec<Tensor>> {
    Emulator::of(module)?.compute(inputs, outputs, calls)
}

pub(crate) fn tensor(matrix: &Matrix) -> Tensor {
    let data: Vec<f32> = matrix.data.iter().map(|&x| x as f32).collect();
    Tensor::from_vec(data, (matrix.rows, matrix.columns), &Device::Cpu).unwrap()
}

pub(crate) fn widened(tensor: &Tensor) -> Vec<f64> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f64::from).collect()
}
