//! Provides the hidden states of a batch's targets, and what of them is sent along as `state`.

use std::ops::Range;

use candle_core::{DType, Device, IndexOp, Tensor};
use distill_model::ModelConfig;
use distill_proto::{State, StateCoding};
use half::f16;

use super::{Teacher, targets};
use crate::{Error, Result, config::StateSetting, production::Tokens};

/// Hidden states at the positions that predict targets, over the batch in order.
///
/// # Shapes
/// `[N, D]`, N the number of targets.
pub(crate) struct TargetStates {
    /// After the final norm, in the model's dtype.
    pub last: Tensor,
    /// After the layers that the plan keeps, side by side, f32 `[N, L D]`; where it keeps any.
    layers: Option<Tensor>,
}

/// Refuses a state that the model does not have.
pub(super) fn check(state: StateSetting, model: &ModelConfig) -> Result<()> {
    let refuse = |reason| Err(Error::config("state", reason));
    let layers = model.num_hidden_layers;
    match state {
        StateSetting::Sketch { rank, .. } if rank > model.hidden_size => refuse(format!(
            "a sketch of {rank} directions is more than the hidden size of {}; use exact",
            model.hidden_size
        )),
        StateSetting::Hidden { .. } if model.model_type.is_outside() => refuse(format!(
            "{} gives the hidden states after its last layer only; use exact or sketch:R",
            model.model_type.name()
        )),
        StateSetting::Hidden { layers: asked, .. } => {
            let numbers = asked.numbered();
            if let Some(beyond) = numbers.clone().find(|&layer| layer > layers) {
                return refuse(format!(
                    "layer {beyond} was asked for, but the model has {layers}"
                ));
            }
            if !numbers.clone().any(|layer| layer == layers) {
                return Ok(());
            }
            refuse(format!(
                "layer {layers} is the last one; use exact for its output after the final norm, or write `last` in a list"
            ))
        }
        _ => Ok(()),
    }
}

impl Teacher {
    /// Runs the model once over a batch.
    pub(crate) fn target_states(&self, batch: &[Tokens<'_>]) -> Result<TargetStates> {
        let longest = batch
            .iter()
            .map(|tokens| tokens.token_ids.len())
            .max()
            .unwrap_or(1);
        let mut ids = Vec::with_capacity(batch.len() * longest);
        let mut rows: Vec<u32> = Vec::new();
        for tokens in batch {
            let first = ids.len() as u32;
            ids.extend_from_slice(tokens.token_ids);
            // Right padding changes nothing to its left in a causal model; any id will do.
            ids.resize(first as usize + longest, 0);
            // The output at t-1 is about the token at t.
            rows.extend(targets(tokens).map(|t| first + t as u32 - 1));
        }
        let ids = Tensor::from_vec(ids, (batch.len(), longest), &Device::Cpu)?;
        let rows = Tensor::new(rows, self.backbone.device())?;
        let of_targets = |hidden: Tensor| hidden.flatten_to(1)?.index_select(&rows, 0);
        if let StateSetting::Hidden { layers, .. } = self.capture.state {
            let earlier: Vec<usize> = layers.numbered().collect();
            let (last, mut taken) = self.backbone.hidden_states_and_layers(&ids, &earlier)?;
            let last = of_targets(last)?;
            for x in &mut taken {
                *x = of_targets(x.clone())?;
            }
            if layers.has_last() {
                taken.push(last.to_dtype(DType::F32)?);
            }
            let layers = Some(Tensor::cat(&taken, 1)?);
            return Ok(TargetStates { last, layers });
        }
        Ok(TargetStates {
            last: of_targets(self.backbone.hidden_states(&ids)?)?,
            layers: None,
        })
    }

    /// What is sent along for a sequence's `rows` of the batch.
    pub(super) fn state(
        &self,
        states: &TargetStates,
        rows: Range<usize>,
        sequence: u64,
    ) -> Result<Option<State>> {
        let setting = self.capture.state;
        let (states, coding) = match (setting, &states.layers) {
            (StateSetting::Hidden { coding, .. }, Some(layers)) => (layers, coding),
            (StateSetting::Exact(coding) | StateSetting::Sketch { coding, .. }, _) => {
                (&states.last, coding)
            }
            _ => return Ok(None),
        };
        let Some(kind) = setting.kind() else {
            return Ok(None);
        };
        let mut values = states.i(rows)?.to_dtype(DType::F32)?;
        if let StateSetting::Sketch { .. } = setting {
            let missing = || Error::Internal("the sketch was not made before frames".into());
            let projection = self.projection.as_ref().ok_or_else(missing)?;
            values = values.to_device(&Device::Cpu)?.matmul(projection)?;
        }
        let rank = values.dim(1)?;
        let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
        if coding == StateCoding::F16 {
            check_half_range(&values, setting, sequence)?;
        }
        Ok(Some(State {
            kind,
            coding,
            rank,
            layers: setting.layers(),
            values,
        }))
    }
}

/// The residual stream of some models reaches tens of thousands in a few dimensions, so half precision may not hold it.
fn check_half_range(values: &[f32], setting: StateSetting, sequence: u64) -> Result<()> {
    let largest = values.iter().fold(0f32, |max, value| max.max(value.abs()));
    if largest <= f16::MAX.to_f32() {
        return Ok(());
    }
    let remedy = match setting {
        StateSetting::Hidden { layers, .. } => format!("hidden:{layers}:i8"),
        StateSetting::Sketch { rank, .. } => format!("sketch:{rank}:i8"),
        StateSetting::None | StateSetting::Exact(_) => "exact:i8".to_owned(),
    };
    Err(Error::StateOverflow {
        sequence,
        largest,
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_beyond_half_precision_names_the_coding_that_holds_it() {
        let hidden: StateSetting = "hidden:2:f16".parse().unwrap();
        assert!(check_half_range(&[1.0, -65_504.0], hidden, 1).is_ok());
        let error = check_half_range(&[1.0, -65_600.0], hidden, 0xab).unwrap_err();
        assert!(error.to_string().contains("--state hidden:2:i8"), "{error}");
        assert!(error.to_string().contains("00000000000000ab"), "{error}");
    }
}
