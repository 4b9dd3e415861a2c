//! Provides which hidden states of teacher and student are compared.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A state of the teacher's capture beside a layer of the student: `TEACHER_STATE:STUDENT_LAYER`, or with `:WEIGHT`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StateLayer {
    /// Number of the state in the capture, from 0.
    pub teacher_state: usize,
    /// The student's layer: 0 is what the embeddings give, 1 the first layer's output; `None` the last after its norm.
    pub student_layer: Option<usize>,
    /// What it counts beside others.
    pub weight: f64,
}

/// The last layer's output after its norm.
const LAST: &str = "last";

impl Default for StateLayer {
    fn default() -> Self {
        Self {
            teacher_state: 0,
            student_layer: None,
            weight: 1.0,
        }
    }
}

impl StateLayer {
    /// The layers without their weight, `TEACHER_STATE:STUDENT_LAYER`.
    pub fn ends(&self) -> String {
        let unweighted = Self {
            weight: 1.0,
            ..*self
        };
        unweighted.to_string()
    }
}

impl FromStr for StateLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || {
            format!("`{text}` is not TEACHER_STATE:STUDENT_LAYER[:WEIGHT], such as 0:last or 0:12")
        };
        let mut parts = text.split(':').map(str::trim);
        let (Some(state), Some(layer)) = (parts.next(), parts.next()) else {
            return Err(fault());
        };
        let weight = parts.next().unwrap_or("1").parse().map_err(|_| fault())?;
        if parts.next().is_some() || !super::is_positive(weight) {
            return Err(fault());
        }
        let student_layer = if layer == LAST {
            None
        } else {
            Some(layer.parse().map_err(|_| fault())?)
        };
        Ok(Self {
            teacher_state: state.parse().map_err(|_| fault())?,
            student_layer,
            weight,
        })
    }
}

impl fmt::Display for StateLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.teacher_state)?;
        match self.student_layer {
            Some(layer) => write!(f, "{layer}")?,
            None => f.write_str(LAST)?,
        }
        if self.weight == 1.0 {
            return Ok(());
        }
        write!(f, ":{}", self.weight)
    }
}

impl TryFrom<String> for StateLayer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<StateLayer> for String {
    fn from(layer: StateLayer) -> Self {
        layer.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_and_written_as_they_were() {
        for text in ["0:last", "0:0", "0:12", "1:3:0.5"] {
            let layer: StateLayer = text.parse().unwrap();
            assert_eq!(layer.to_string(), text);
        }
        for text in [
            "", "last", "0", "0:", ":3", "0:x", "0:1:0", "0:1:x", "0:1:1:1", "-1:2", "0:1:inf",
        ] {
            assert!(text.parse::<StateLayer>().is_err(), "{text}");
        }
    }
}
