//! Provides the families of checkpoints, and what each leaves unsaid in its `config.json`.

/// A family of checkpoints: those that the decoder's shape covers, and those outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3, dense: an RMSNorm on every head's queries and keys.
    Qwen3,
    /// Llama and models saved as it (SmolLM2): biases only where the config asks for them.
    Llama,
    /// Mistral: Llama without biases, early ones with attention to a window.
    Mistral,
    /// Phi-3 and Phi-4, without longrope: Mistral with q, k and v in one matrix, and gate and up in another.
    Phi3,
    /// SmolLM3: Llama with layers that turn nothing by its position.
    SmolLm3,
    /// Qwen3 with experts; a teacher only, which candle-transformers runs.
    Qwen3Moe,
}

impl Architecture {
    /// Every supported architecture, with the name `config.json` gives it.
    pub const ALL: [(&str, Self); 7] = [
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("phi3", Self::Phi3),
        ("smollm3", Self::SmolLm3),
        ("qwen3_moe", Self::Qwen3Moe),
    ];

    /// The name under which `config.json` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Phi3 => "phi3",
            Self::SmolLm3 => "smollm3",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }

    /// The names of those that `wanted` holds of, for messages.
    pub(super) fn names(wanted: impl Fn(Self) -> bool) -> String {
        let known = Self::ALL.into_iter().filter(|(_, known)| wanted(*known));
        known.map(|(name, _)| name).collect::<Vec<_>>().join(", ")
    }

    /// Whether its shape is not the [`Decoder`](crate::Decoder)'s.
    pub fn is_outside(self) -> bool {
        self == Self::Qwen3Moe
    }

    /// The name of its class in transformers, which `config.json` repeats.
    pub fn class(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
        }
    }

    /// transformers' default where `config.json` names no longest sequence.
    pub(super) fn max_position_embeddings(self) -> usize {
        match self {
            Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 | Self::Qwen3Moe => 32_768,
            Self::Llama => 2_048,
            Self::Mistral => 131_072,
            Self::Phi3 => 4_096,
        }
    }

    /// transformers' default base of the rotary frequencies.
    pub(super) fn rope_theta(self) -> f64 {
        match self {
            Self::SmolLm3 => 2_000_000.0,
            _ => 10_000.0,
        }
    }

    /// transformers' default of RMSNorm's epsilon.
    pub(super) fn rms_norm_eps(self) -> f64 {
        match self {
            Self::Phi3 => 1e-5,
            _ => 1e-6,
        }
    }

    /// Whether q, k and v are the rows of one stored matrix, and gate and up those of another.
    pub fn stacks_projections(self) -> bool {
        self == Self::Phi3
    }

    /// transformers' default width of a head, where it is not the stream's share.
    pub(super) fn head_dim(self) -> Option<usize> {
        match self {
            Self::Qwen3 => Some(128),
            _ => None,
        }
    }
}
