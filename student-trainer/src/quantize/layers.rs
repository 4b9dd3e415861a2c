//! Provides which layers of a model are kept, and under which number.

use crate::{Error, Result};

/// The kept layers of a model, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerMap(Vec<usize>);

impl LayerMap {
    /// Reads `0-9,20-29`; all `count` layers where there is no list.
    ///
    /// # Errors
    /// What is no number or range, a layer that is not there, or one that is named twice or out of order.
    pub fn new(list: Option<&str>, count: usize) -> Result<Self> {
        let Some(list) = list else {
            return Ok(Self((0..count).collect()));
        };
        let fault = |problem: String| Error::Config(format!("keep_layers: {problem}"));
        let mut kept: Vec<usize> = Vec::new();
        for part in list.split(',').map(str::trim) {
            let number = |text: &str| {
                let parsed = text.trim().parse::<usize>();
                parsed.map_err(|_| fault(format!("`{part}` is no layer and no range such as 0-9")))
            };
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last >= count {
                return Err(fault(format!(
                    "there is no layer {last}; the model has 0 to {}",
                    count.saturating_sub(1)
                )));
            }
            if first > last || kept.last().is_some_and(|&kept| kept >= first) {
                return Err(fault(format!(
                    "`{part}` is out of order; name layers from low to high, each once"
                )));
            }
            kept.extend(first..=last);
        }
        Ok(Self(kept))
    }

    /// Layers kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What `of_layer` holds for the layers that stay.
    pub fn kept<T: Copy>(&self, of_layer: &[T]) -> Vec<T> {
        let kept = self.0.iter().filter_map(|layer| of_layer.get(*layer));
        kept.copied().collect()
    }

    /// The name that a tensor gets; `None` where its layer is dropped.
    pub fn renamed(&self, name: &str) -> Option<String> {
        let Some(rest) = name.strip_prefix("model.layers.") else {
            return Some(name.to_owned());
        };
        let (layer, part) = rest.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let place = self.0.binary_search(&layer).ok()?;
        Some(format!("model.layers.{place}.{part}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_keep_and_renumber() {
        let map = LayerMap::new(Some("0-1, 4,6-7"), 8).unwrap();
        assert_eq!(map.len(), 5);
        let name = |layer| format!("model.layers.{layer}.mlp.up_proj.weight");
        assert_eq!(map.renamed(&name(6)), Some(name(3)));
        assert_eq!(map.renamed(&name(2)), None);
        assert_eq!(
            map.renamed("model.norm.weight").as_deref(),
            Some("model.norm.weight")
        );
        assert_eq!(LayerMap::new(None, 3).unwrap().len(), 3);
    }

    #[test]
    fn lists_without_meaning_are_refused() {
        for (list, expected) in [
            ("", "no layer"),
            ("a", "`a`"),
            ("0-8", "no layer 8"),
            ("3-1", "out of order"),
            ("0-3,3", "out of order"),
            ("1-", "no layer"),
        ] {
            let message = LayerMap::new(Some(list), 8).unwrap_err().to_string();
            assert!(message.contains(expected), "{list}: {message}");
        }
    }
}
