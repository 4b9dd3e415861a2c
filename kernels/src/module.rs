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
    ($($(#[$doc:meta])* $module:ident = $name:literal: $($function:literal)+;)+) => {
        $(
            $(#[$doc])*
            pub static $module: Module =
                Module::new($name, include_str!(concat!("cuda/", $name, ".cu")), &[$($function),+]);
        )+

        /// Every module.
        pub static MODULES: &[&Module] = &[$(&$module),+];
    };
}

modules! {
    /// What every kernel rests on: conversions, barriers, exchanges within a warp.
    SELF_TEST = "self_test": "convert" "block_totals" "reverse" "exchange";
    /// Four-bit matrices, unpacked.
    NF4 = "nf4": "dequantize_nested" "dequantize_plain";
    /// RMSNorm, rotary positions and SwiGLU, with their gradients.
    LAYERS = "layers": "rms_norm" "rms_norm_gradient" "rope" "swiglu" "swiglu_gradient";
}
