//! Provides how many weights a model has, of which kinds, and what they take as they are held.

use std::collections::HashSet;

use distill_model::{BLOCK_SIZE, LoraConfig, ModelConfig, double_quantized_bytes};

use super::pair::FourBit;
use crate::{Result, optimizer::OptimizerKind};

/// Weights that share a scale.
const NF4_BLOCK: u64 = BLOCK_SIZE as u64;

/// One linear of a layer with its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub columns: u64,
    /// Rank of its adapter; 0 without one.
    pub rank: u64,
    /// Whether it has a bias.
    pub bias: bool,
}

impl LinearShape {
    /// Weights.
    pub fn elements(self) -> u64 {
        self.rows * self.columns
    }

    /// Elements of A and of B.
    pub fn adapter(self) -> [u64; 2] {
        [self.rank * self.columns, self.rank * self.rows]
    }
}

/// A model's tensors by their kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The linears of every layer.
    pub layers: Vec<Vec<LinearShape>>,
    /// Weights of one embedding matrix, which is the head too where they are tied.
    pub embedding: u64,
    /// Weights of a head of its own.
    pub head: u64,
    /// Norms and biases, one by one.
    pub small: Vec<u64>,
}

impl Counts {
    /// Of a model with these adapters.
    ///
    /// # Errors
    /// An expression of `lora` whose matching does not end in time.
    pub fn new(model: &ModelConfig, lora: Option<&LoraConfig>) -> Result<Self> {
        let mut counts = Self {
            layers: vec![Vec::new(); model.num_hidden_layers],
            embedding: 0,
            head: 0,
            small: Vec::new(),
        };
        let shapes = model.parameter_shapes();
        let biases = shapes
            .iter()
            .filter_map(|(name, _)| name.strip_suffix(".bias"));
        let biases: HashSet<&str> = biases.collect();
        for (name, shape) in &shapes {
            let elements: u64 = shape.iter().map(|&size| size as u64).product();
            let &[rows, columns] = shape.as_slice() else {
                counts.small.push(elements);
                continue;
            };
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let layer = module.strip_prefix("model.layers.");
            let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            match layer.and_then(|layer| counts.layers.get_mut(layer)) {
                Some(layer) => layer.push(LinearShape {
                    rows: rows as u64,
                    columns: columns as u64,
                    rank: rank(module, lora)?,
                    bias: biases.contains(module),
                }),
                None if module == "lm_head" => counts.head = elements,
                None => counts.embedding = elements,
            }
        }
        Ok(counts)
    }

    /// Every linear.
    pub fn linears(&self) -> impl Iterator<Item = LinearShape> {
        self.layers.iter().flatten().copied()
    }

    /// Weights of all linears.
    pub fn linear_elements(&self) -> u64 {
        self.linears().map(LinearShape::elements).sum()
    }

    /// Embedding, head, norms and biases: what is never in four bits.
    pub fn dense_elements(&self) -> u64 {
        self.embedding + self.head + self.small.iter().sum::<u64>()
    }

    /// All weights.
    pub fn elements(&self) -> u64 {
        self.linear_elements() + self.dense_elements()
    }

    /// Parameters of all adapters.
    pub fn adapter_elements(&self) -> u64 {
        self.linears().flat_map(LinearShape::adapter).sum()
    }

    /// All linears in four bits: half a byte a weight, and their scales.
    pub fn four_bit_bytes(&self, scales: FourBit) -> u64 {
        let of = |linear: LinearShape| four_bit_bytes(linear.elements(), scales);
        self.linears().map(of).sum()
    }

    /// Moments of the adapters.
    pub fn adapter_moments(&self, kind: OptimizerKind) -> u64 {
        let matrices = self.linears().flat_map(LinearShape::adapter);
        matrices.map(|elements| kind.state_bytes(elements)).sum()
    }

    /// Moments of all weights; an embedding's are always f32.
    pub fn moments(&self, kind: OptimizerKind) -> u64 {
        let linears = self.linears().map(LinearShape::elements);
        let others = self.small.iter().copied().chain([self.head]);
        let moments = linears
            .chain(others)
            .map(|elements| kind.state_bytes(elements));
        moments.sum::<u64>() + OptimizerKind::AdamW.state_bytes(self.embedding)
    }

    /// Elements of the largest trained matrix: of the adapters, or of the whole model.
    pub fn largest_trained(&self, whole: bool) -> u64 {
        let adapters = self.linears().flat_map(LinearShape::adapter).max();
        let linears = self.linears().map(LinearShape::elements).max();
        match whole {
            true => linears.unwrap_or(0).max(self.embedding).max(self.head),
            false => adapters.unwrap_or(0),
        }
    }
}

fn rank(module: &str, lora: Option<&LoraConfig>) -> Result<u64> {
    match lora {
        Some(lora) if lora.adapts(module)? => Ok(lora.rank_of(module)? as u64),
        _ => Ok(0),
    }
}

/// Bytes of `elements` weights in four bits (bitsandbytes' block sizes).
pub fn four_bit_bytes(elements: u64, scales: FourBit) -> u64 {
    match scales {
        FourBit::Plain => elements.div_ceil(2) + 4 * elements.div_ceil(NF4_BLOCK),
        FourBit::Double => double_quantized_bytes(elements),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::TrainConfig, plan::Pair};

    fn gib(bytes: u64) -> f64 {
        bytes as f64 / (1u64 << 30) as f64
    }

    /// The figures are given to two digits after the point.
    #[track_caller]
    fn assert_gib(bytes: u64, expected: f64) {
        let actual = gib(bytes);
        assert!(
            (actual - expected).abs() < 0.006,
            "{actual} GiB, expected {expected}"
        );
    }

    fn student(config: &TrainConfig) -> Counts {
        let pair = Pair::reference().unwrap();
        Counts::new(&pair.student.model, Some(&config.lora().unwrap())).unwrap()
    }

    #[test]
    fn weights_are_those_that_are_published() {
        let teacher = Pair::reference().unwrap().teacher.unwrap();
        let teacher = Counts::new(&teacher.model, None).unwrap();
        let student = student(&TrainConfig::default());
        assert_eq!(teacher.elements(), 7_615_616_512);
        assert_eq!(student.elements(), 1_543_714_304);
        assert_eq!((student.head, student.embedding), (0, 151_936 * 1536));
        assert_gib(2 * teacher.elements(), 14.19);
        assert_gib(student.four_bit_bytes(FourBit::Double), 0.63);
        // An f32 for 64 weights is half a bit a weight, where double quantisation takes an eighth and a little.
        assert_gib(student.four_bit_bytes(FourBit::Plain), 0.69);
        assert_gib(2 * student.embedding, 0.43);
    }

    #[test]
    fn adapters_follow_targets_ranks_and_patterns() {
        let all = student(&TrainConfig::default());
        assert_eq!(all.adapter_elements(), 18_464_768);
        assert_eq!(all.adapter_moments(OptimizerKind::AdamW), 8 * 18_464_768);
        // Two bytes an element, and eight for 256 of them.
        let eight_bit = 2 * 18_464_768 + 18_464_768 / 32;
        assert_eq!(all.adapter_moments(OptimizerKind::AdamW8bit), eight_bit);

        let some = student(&TrainConfig {
            lora_rank: 8,
            lora_targets: vec!["q_proj".into(), "v_proj".into()],
            lora_rank_pattern: vec!["layers.0.self_attn.v_proj=64".into()],
            ..TrainConfig::default()
        });
        let (q, v) = (8 * (1536 + 1536), 8 * (1536 + 256));
        assert_eq!(some.adapter_elements(), 28 * (q + v) + 56 * (1536 + 256));
        assert_eq!(some.largest_trained(false), 64 * 1536);
        assert_eq!(some.largest_trained(true), 151_936 * 1536);
    }
}
