//! Provides what any process takes before it computes anything, and what its allocator holds without using it.

use super::{config::Place, part::Part};

/// One context with cuBLAS: what `nvidia-smi` shows for a process that has computed nothing but a matrix product.
const CUDA_CONTEXT_BYTES: u64 = 450 << 20;
/// The program with its libraries, threads and network.
const PROGRAM_BYTES: u64 = 24 << 20;
/// A tokenizer's vocabulary and merges, by its entries: 570 to 680 are resident for tokenizers of 49,152 and 151,665 entries.
const TOKENIZER_ENTRY_BYTES: u64 = 600;

/// What is there before any weight.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// Whose memory is counted.
    pub place: Place,
    /// Entries of the tokenizer, about.
    pub vocab_size: u64,
}

impl Base {
    /// A context on a card, which ends with the process; program and tokenizer on the CPU, which stay while the other process
    /// computes.
    pub fn parts(self) -> Vec<Part> {
        match self.place {
            Place::Card => vec![Part::always("CUDA context", CUDA_CONTEXT_BYTES)],
            Place::Cpu => {
                let bytes = PROGRAM_BYTES + TOKENIZER_ENTRY_BYTES * self.vocab_size;
                vec![Part::always("program and tokenizer", bytes).staying()]
            }
        }
    }
}

/// The share of everything else that an allocator holds without using it: rounding and holes.
pub fn slack(place: Place) -> f64 {
    match place {
        Place::Card => 0.05,
        Place::Cpu => 0.02,
    }
}
