//! Provides what a process holds of a model's weights, and what it needs beside them to read and to use them.

/// Weights as they are held, with what comes and goes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Where the process computes.
    pub bytes: u64,
    /// In the machine's memory, where that is another.
    pub host_bytes: u64,
    /// Of an open file's metadata.
    pub metadata_bytes: u64,
    /// Weights that are dequantised at a time, in a layer.
    pub layer_tile: u64,
    /// The same in the head.
    pub head_tile: u64,
    /// What is there beside the weights while they are read, and how much.
    pub reading: (&'static str, u64),
    /// How the head is held.
    pub head: HeldHead,
}

/// How a head is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeldHead {
    /// As one tensor in the activations' type.
    #[default]
    Dense,
    /// In blocks, whose product is f32; `in_parts` where it is put together from those of several strips.
    Packed {
        /// Whether there is more than one strip.
        in_parts: bool,
    },
}
