//! Provides the list of modules: each a name, the text of a `.cu` file, and the functions in it.

/// Definitions that the text of every module begins with.
const PRELUDE: &str = include_str!("cuda/prelude.cuh");

/// Functions that are compiled together.
#[derive(Debug)]
pub struct Module {
    name: &'static str,
    source: &'static str,
    functions: &'static [&'static str],
}

impl Module {
    /// A module of its own, beside those of this crate.
    pub const fn new(
        name: &'static str,
        source: &'static str,
        functions: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            source,
            functions,
        }
    }

    /// The name, unique among all modules.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The functions that can be launched.
    pub fn functions(&self) -> &'static [&'static str] {
        self.functions
    }

    /// What the compiler gets.
    pub fn text(&self) -> String {
        [PRELUDE, self.source].concat()
    }
}

macro_rules! modules {
    ($($(#[$doc:meta])* $module:ident = $name:literal $(after $shared:literal)? $(then $more:literal)?: $($function:literal)+;)+) => {
        $(
            $(#[$doc])*
            pub static $module: Module = Module::new(
                $name,
                concat!($(include_str!(concat!("cuda/", $shared)),)? include_str!(concat!("cuda/", $name, ".cu")) $(, include_str!(concat!("cuda/", $more)))?),
                &[$($function),+],
            );
        )+

        /// Every module.
        pub static MODULES: &[&Module] = &[$(&$module),+];
    };
}

modules! {
    /// What every kernel rests on: conversions, barriers, exchanges within a warp, tensor cores.
    SELF_TEST = "self_test": "convert" "block_totals" "reverse" "exchange" "multiply_16" "four_matrices";
    /// The rows of a student's head; see [`head`](crate::head).
    HEAD = "head": "head_parts" "head_factors" "head_gradient";
    /// What is kept of rows of logits, and the tokens that they choose; see [`select`](crate::select) and [`sample`](crate::sample).
    SELECT = "select" then "sample.cu": "select_rows" "draw_rows" "sample_rows";
    /// Four-bit matrices, unpacked.
    NF4 = "nf4": "dequantize_nested" "dequantize_plain" "dequantize_three";
    /// Plans of optimal transport; see [`sinkhorn`](crate::sinkhorn).
    SINKHORN = "sinkhorn" after "transport.cuh" then "sharp.cu": "sinkhorn_rows" "sinkhorn_step" "sharp_rows" "sharp_step";
    /// Causal attention, forward and backward; see [`attention`](crate::attention).
    ATTENTION = "attention" then "attention_mma.cu": "attention" "attention_along" "attention_to_queries" "attention_to_keys"
        "attention_join" "attention_mma_64" "attention_to_queries_mma_64" "attention_to_keys_mma_64" "attention_mma_128"
        "attention_to_queries_mma_128" "attention_to_keys_mma_128";
    /// Updates of an optimiser; see [`update`](crate::update).
    UPDATE = "update": "adamw" "adamw_8bit" "squares" "sums_of_parts";
    /// Many tensors in another type; see [`cast`](crate::cast).
    CAST = "cast": "cast_many";
    /// RMSNorm, heads with their rotary positions, and SwiGLU, with their gradients.
    LAYERS = "layers": "rms_norm" "rms_norm_and_copy" "rms_norm_gradient" "rms_norm_terms" "rope" "split_heads" "join_heads" "swiglu" "swiglu_gradient";
}
