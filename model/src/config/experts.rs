//! Provides the experts of a mixture's layers, as `config.json` writes them.

use super::Architecture;
use super::check::{Problem, problem, required};
use super::raw::{INTERMEDIATE_SIZE_MAX, LAYERS_MAX, RawConfig};

/// Largest number of experts of a layer; published ones have up to 512.
const EXPERTS_MAX: usize = 4096;
/// Experts of all layers together, each with three matrices; published models have up to 24,000.
const ALL_EXPERTS_MAX: usize = 1 << 17;
/// transformers' defaults of Qwen3-MoE.
const NUM_EXPERTS: usize = 128;
const NUM_EXPERTS_PER_TOK: usize = 8;
const MOE_INTERMEDIATE_SIZE: usize = 768;

/// Gated MLPs of which a router chooses a few for every token, in place of one MLP for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// How many a layer has.
    pub num_experts: usize,
    /// How many a token passes through.
    pub num_experts_per_tok: usize,
    /// Width of each.
    pub moe_intermediate_size: usize,
    /// Whether the chosen experts' shares are divided by their sum.
    pub norm_topk_prob: bool,
    /// Layers whose number, counted from 1, is a multiple of this have them; the others have an MLP.
    pub decoder_sparse_step: usize,
}

impl Experts {
    /// Whether layer `layer`, counted from 0, has them.
    pub fn are_in(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.decoder_sparse_step)
    }
}

impl RawConfig {
    /// The experts of a family that has them.
    pub(super) fn experts(&self, architecture: Architecture) -> Result<Option<Experts>, Problem> {
        if architecture != Architecture::Qwen3Moe {
            return Ok(None);
        }
        if let Some(layers) = self.mlp_only_layers.as_ref().filter(|all| !all.is_empty()) {
            return problem(
                "mlp_only_layers",
                format!(
                    "layers {layers:?} without experts are not supported; supported is [], with decoder_sparse_step"
                ),
            );
        }
        let num_experts = required("num_experts", Some(self.num_experts()?), EXPERTS_MAX)?;
        let all = num_experts.saturating_mul(self.num_hidden_layers.unwrap_or(0));
        if all > ALL_EXPERTS_MAX {
            let reason =
                format!("{num_experts} in every layer are {all} together, above {ALL_EXPERTS_MAX}");
            return problem("num_experts", reason);
        }
        let per_token = self.num_experts_per_tok.or(Some(NUM_EXPERTS_PER_TOK));
        let width = self.moe_intermediate_size.or(Some(MOE_INTERMEDIATE_SIZE));
        let step = self.decoder_sparse_step.or(Some(1));
        Ok(Some(Experts {
            num_experts,
            num_experts_per_tok: required("num_experts_per_tok", per_token, num_experts)?,
            moe_intermediate_size: required("moe_intermediate_size", width, INTERMEDIATE_SIZE_MAX)?,
            norm_topk_prob: self.norm_topk_prob.unwrap_or(false),
            decoder_sparse_step: required("decoder_sparse_step", step, LAYERS_MAX)?,
        }))
    }

    /// transformers 5 writes `num_local_experts`, earlier ones `num_experts`.
    fn num_experts(&self) -> Result<usize, Problem> {
        match (self.num_experts, self.num_local_experts) {
            (Some(one), Some(other)) if one != other => problem(
                "num_experts",
                format!("{one} beside num_local_experts = {other}"),
            ),
            (one, other) => Ok(one.or(other).unwrap_or(NUM_EXPERTS)),
        }
    }
}
