//! Provides which layers attend to a window of the latest positions, as each family's configuration in transformers
//! works it out.

use super::Architecture;
use super::check::{Problem, problem, required};
use super::raw::{POSITIONS_MAX, RawConfig};

/// Mistral's default where `config.json` does not mention the window at all; `null` means none.
const MISTRAL_WINDOW: usize = 4096;
/// Qwen's default where it is used but not named.
const QWEN_WINDOW: usize = 4096;
/// Qwen's default of the first layer with a window.
const QWEN_FIRST_WINDOW_LAYER: usize = 28;

impl RawConfig {
    /// The window of every layer; `None` for full attention.
    pub(super) fn windows(
        &self,
        architecture: Architecture,
        layers: usize,
    ) -> Result<Vec<Option<usize>>, Problem> {
        match architecture {
            // Its code in transformers has no window, whatever the file says.
            Architecture::Llama => Ok(vec![None; layers]),
            Architecture::Mistral => {
                let window = self.sliding_window.unwrap_or(Some(MISTRAL_WINDOW));
                Ok(vec![checked(window)?; layers])
            }
            Architecture::Phi3 => Ok(vec![checked(self.sliding_window.flatten())?; layers]),
            Architecture::Qwen2 | Architecture::Qwen3 => {
                let first = self.max_window_layers.unwrap_or(QWEN_FIRST_WINDOW_LAYER);
                let window = self.sliding_window.unwrap_or(Some(QWEN_WINDOW));
                self.windows_by_layer(window, (0..layers).map(|layer| layer >= first))
            }
            Architecture::Qwen3Moe if self.use_sliding_window == Some(true) => {
                problem("use_sliding_window", "is not supported for qwen3_moe")
            }
            Architecture::Qwen3Moe => self.windows_by_layer(None, (0..layers).map(|_| false)),
            Architecture::SmolLm3 => {
                let turned = self.turned(architecture, layers)?;
                let has_window = turned.into_iter().map(|turned| !turned);
                self.windows_by_layer(self.sliding_window.flatten(), has_window)
            }
        }
    }

    /// Where windows are used at all, those of the layers that `layer_types` says, else of those in `by_default`.
    fn windows_by_layer(
        &self,
        window: Option<usize>,
        by_default: impl ExactSizeIterator<Item = bool>,
    ) -> Result<Vec<Option<usize>>, Problem> {
        let layers = by_default.len();
        let window = match self.use_sliding_window {
            Some(true) => checked(window)?,
            _ => None,
        };
        let Some(types) = &self.layer_types else {
            return Ok(by_default.map(|has| window.filter(|_| has)).collect());
        };
        let full = |kind: &String| kind == "full_attention";
        if types.iter().all(full) {
            return Ok(vec![None; layers]);
        }
        if types.len() != layers {
            let found = types.len();
            return problem(
                "layer_types",
                format!("names {found} layers beside num_hidden_layers = {layers}"),
            );
        }
        let of_layer = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => problem(
                "layer_types",
                "`sliding_attention` without use_sliding_window and sliding_window",
            ),
            kind => problem(
                "layer_types",
                format!(
                    "`{kind}` is not supported; supported are full_attention and sliding_attention"
                ),
            ),
        };
        types.iter().map(of_layer).collect()
    }
}

fn checked(window: Option<usize>) -> Result<Option<usize>, Problem> {
    let in_range = |window| required("sliding_window", Some(window), POSITIONS_MAX);
    window.map(in_range).transpose()
}
