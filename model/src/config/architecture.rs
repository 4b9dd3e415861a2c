//! Provides the families of checkpoints that share the decoder's shape, and what each leaves unsaid in its `config.json`.

/// A family of checkpoints that the decoder's shape covers.
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
}

impl Architecture {
    /// Every supported architecture, with the name `config.json` gives it.
    pub const ALL: [(&str, Self); 4] = [
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
    ];

    /// The name under which `config.json` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
        }
    }

    /// The name of its class in transformers, which `config.json` repeats.
    pub fn class(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
        }
    }

    /// transformers' default where `config.json` names no longest sequence.
    pub(super) fn max_position_embeddings(self) -> usize {
        match self {
            Self::Qwen2 | Self::Qwen3 => 32_768,
            Self::Llama => 2_048,
            Self::Mistral => 131_072,
        }
    }

    /// transformers' default width of a head, where it is not the stream's share.
    pub(super) fn head_dim(self) -> Option<usize> {
        match self {
            Self::Qwen3 => Some(128),
            Self::Qwen2 | Self::Llama | Self::Mistral => None,
        }
    }
}
