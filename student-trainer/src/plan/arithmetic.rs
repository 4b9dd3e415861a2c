//! Provides the arithmetic of memory: bytes of every part of a distillation on one card, from two models' shapes.
//!
//! Weights, adapters and optimiser are exact. Activations count the tensors that the layers keep for their backward
//! pass; what no formula gives (CUDA contexts, the allocator's slack) is a named constant.

use distill_model::{ModelConfig, double_quantized_bytes};

use crate::optimizer::OptimizerKind;

/// One context with cuBLAS: what `nvidia-smi` shows for a process that has computed nothing but a matrix product.
const CUDA_CONTEXT_BYTES: u64 = 450 << 20;
/// Share of everything else that caching allocators hold without using it.
const ALLOCATOR_SLACK: f64 = 0.05;
/// Rows of logits that the teacher holds at one time while it selects.
const TEACHER_CHUNK_ROWS: u64 = 128;
/// f32 copies of a chunk of logits at the peak of the head: the logits and their gradient.
const HEAD_CHUNK_COPIES: u64 = 2;
/// f32 matrices over pairs of positions at the peak of the solver: cost, kernel, plan and gradient.
const OT_MATRICES: u64 = 4;
/// What the student's frozen linears are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StudentBase {
    /// 4-bit with double quantisation.
    Nf4,
    /// In the compute type.
    Dense,
}

/// Everything that the sizes depend on beside the two shapes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// Sequences of a pass.
    pub batch_size: u64,
    /// LoRA rank, on every linear.
    pub lora_rank: u64,
    /// How the adapters' moments are kept.
    pub optimizer: OptimizerKind,
    /// Whether layers are recomputed in the backward pass.
    pub checkpointing: bool,
    /// Bytes of a teacher's weight.
    pub teacher_weight_bytes: u64,
    /// Bytes of a student's activation, and of its dense weights.
    pub student_bytes: u64,
    /// How the student's linears are held.
    pub student_base: StudentBase,
    /// Rows of student logits at one time.
    pub chunk_rows: u64,
    /// Whether similarities of logits are used, which keep P [d, r] and G [d, d].
    pub state_rank: Option<u64>,
    /// Whether transport is computed.
    pub transport: bool,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// `teacher`, `student` or `both`: whose process holds it.
    pub owner: &'static str,
    /// How much.
    pub bytes: u64,
}

/// `(out, in)` of every linear of a layer.
pub fn linears(model: &ModelConfig) -> [(u64, u64); 7] {
    let d = model.hidden_size as u64;
    let ff = model.intermediate_size as u64;
    let (q, kv) = (model.query_size() as u64, model.key_value_size() as u64);
    [(q, d), (kv, d), (kv, d), (d, q), (ff, d), (ff, d), (d, ff)]
}

/// Weights of all linears of all layers.
pub fn linear_parameters(model: &ModelConfig) -> u64 {
    let layer: u64 = linears(model)
        .iter()
        .map(|(rows, columns)| rows * columns)
        .sum();
    layer * model.num_hidden_layers as u64
}

/// Embedding, and the head where it is its own matrix.
pub fn embedding_parameters(model: &ModelConfig) -> u64 {
    let matrices = if model.tie_word_embeddings { 1 } else { 2 };
    matrices * (model.vocab_size * model.hidden_size) as u64
}

/// Norms and biases.
pub fn small_parameters(model: &ModelConfig) -> u64 {
    let d = model.hidden_size as u64;
    let (q, kv) = (model.query_size() as u64, model.key_value_size() as u64);
    let biases = [
        (model.qkv_bias, q + 2 * kv),
        (model.output_bias, d),
        (model.mlp_bias, 2 * model.intermediate_size as u64 + d),
    ];
    let biases: u64 = biases
        .iter()
        .filter(|(there, _)| *there)
        .map(|(_, size)| size)
        .sum();
    (2 * d + biases) * model.num_hidden_layers as u64 + d
}

/// All parameters of a model.
pub fn parameters(model: &ModelConfig) -> u64 {
    linear_parameters(model) + embedding_parameters(model) + small_parameters(model)
}

/// Parameters of LoRA adapters on every linear: r (in + out) each.
pub fn lora_parameters(model: &ModelConfig, rank: u64) -> u64 {
    let layer: u64 = linears(model)
        .iter()
        .map(|(rows, columns)| rank * (rows + columns))
        .sum();
    layer * model.num_hidden_layers as u64
}

/// Bytes of the moments of those adapters.
pub fn moments_bytes(model: &ModelConfig, workload: &Workload) -> u64 {
    let of = |elements: u64| workload.optimizer.state_bytes(elements);
    let layer: u64 = linears(model)
        .iter()
        .map(|(rows, columns)| of(workload.lora_rank * rows) + of(workload.lora_rank * columns))
        .sum();
    layer * model.num_hidden_layers as u64
}

/// Numbers that one layer keeps for its backward pass, a token.
///
/// Norms; every linear's output thrice (base, adapter, sum) and its r adapter inputs; rotated
/// queries and keys; attention's probabilities over all T positions; the gated product.
pub fn graph_elements_per_token(model: &ModelConfig, workload: &Workload) -> u64 {
    let d = model.hidden_size as u64;
    let outputs: u64 = linears(model)
        .iter()
        .map(|(rows, _)| 3 * rows + workload.lora_rank)
        .sum();
    let rotated = (model.query_size() + model.key_value_size()) as u64;
    let probabilities = model.num_attention_heads as u64 * workload.seq_len;
    let gated = 2 * model.intermediate_size as u64;
    2 * d + outputs + rotated + probabilities + gated
}

fn activations(student: &ModelConfig, workload: &Workload) -> (u64, u64) {
    let tokens = workload.seq_len * workload.batch_size;
    let element = workload.student_bytes;
    let layers = student.num_hidden_layers as u64;
    // The residual stream is f32 in every compute type; a layer's graph holds it four times.
    let stream = tokens * student.hidden_size as u64 * 4;
    let inputs = layers * stream;
    let graph = tokens * graph_elements_per_token(student, workload) * element + 4 * stream;
    match workload.checkpointing {
        // One layer's graph at a time, and as much again for its gradients.
        true => (inputs, 2 * graph),
        false => (layers * graph, graph),
    }
}

/// Every part, in the order of the table.
pub fn parts(teacher: &ModelConfig, student: &ModelConfig, workload: &Workload) -> Vec<Part> {
    let part = |name, owner, bytes| Part { name, owner, bytes };
    let tokens = workload.seq_len * workload.batch_size;
    let frozen = linear_parameters(student);
    let adapters = lora_parameters(student, workload.lora_rank);
    let (kept, recomputed) = activations(student, workload);
    let d = student.hidden_size as u64;
    let embeddings = embedding_parameters(student) + small_parameters(student);
    let mut parts = vec![
        part(
            "weights",
            "teacher",
            parameters(teacher) * workload.teacher_weight_bytes,
        ),
        part(
            "one layer's activations",
            "teacher",
            teacher_activations(teacher, workload),
        ),
        part(
            "logits of a chunk",
            "teacher",
            TEACHER_CHUNK_ROWS * teacher.vocab_size as u64 * 4,
        ),
        match workload.student_base {
            StudentBase::Nf4 => part("linears, NF4", "student", double_quantized_bytes(frozen)),
            StudentBase::Dense => {
                part("linears, dense", "student", frozen * workload.student_bytes)
            }
        },
        part(
            "embeddings, norms, biases",
            "student",
            embeddings * workload.student_bytes,
        ),
        part("adapters, f32", "student", adapters * 4),
        part("adapters' gradients, f32", "student", adapters * 4),
        part(
            "adapters' moments in AdamW",
            "student",
            moments_bytes(student, workload),
        ),
        part("activations kept for backward", "student", kept),
        part("one layer's backward pass", "student", recomputed),
        part(
            "logits of a chunk",
            "student",
            HEAD_CHUNK_COPIES * workload.chunk_rows.min(tokens) * student.vocab_size as u64 * 4,
        ),
        part(
            "hidden states and their gradient, f32",
            "student",
            3 * tokens * d * 4,
        ),
    ];
    if workload.transport {
        let pairs = workload.seq_len * workload.seq_len * workload.batch_size;
        parts.push(part(
            "transport: cost, kernel, plan, gradient",
            "student",
            OT_MATRICES * pairs * 4,
        ));
    }
    if let Some(rank) = workload.state_rank {
        parts.push(part(
            "transport: P [d, r] twice and G [d, d]",
            "student",
            (2 * rank + d) * d * 4,
        ));
    }
    parts.push(part("two CUDA contexts", "both", 2 * CUDA_CONTEXT_BYTES));
    let sum: u64 = parts.iter().map(|part| part.bytes).sum();
    parts.push(part(
        "allocator slack",
        "both",
        (sum as f64 * ALLOCATOR_SLACK) as u64,
    ));
    parts
}

/// A forward pass without a graph: the widest moment is the gated MLP or the attention's scores.
fn teacher_activations(teacher: &ModelConfig, workload: &Workload) -> u64 {
    let d = teacher.hidden_size as u64;
    let mlp = 3 * teacher.intermediate_size as u64;
    let scores = teacher.num_attention_heads as u64 * workload.seq_len * 2;
    let tokens = workload.seq_len * workload.batch_size;
    // Two of the residual stream in f32, two of its norms in the weights' type.
    2 * tokens * d * 4 + tokens * (2 * d + mlp.max(scores)) * workload.teacher_weight_bytes
}

/// Sum of all parts.
pub fn total(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

#[cfg(test)]
#[path = "arithmetic_tests.rs"]
pub(super) mod tests;
