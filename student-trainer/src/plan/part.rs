//! Provides the parts that a process's memory is made of, and its peak: what is always there, and the largest sum of what
//! comes and goes.

use serde::Serialize;

/// A stretch of a process's life that memory comes and goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Weights are read and converted.
    Loading,
    /// The teacher runs its layers.
    Layers,
    /// The teacher selects from its logits.
    Logits,
    /// Transport plans are made, before the logits.
    Transport,
    /// The trainer's head: losses and their gradient in the hidden states.
    Loss,
    /// The trainer's way back begins, at the last layer: all that was kept is there, and no gradient yet.
    Backward,
    /// It ends, at the first layer: all gradients are there, and nothing that was kept.
    Lowest,
    /// AdamW.
    Update,
    /// The moments are copied for a checkpoint.
    Saving,
    /// The student answers a few prompts for the report.
    Answers,
}

impl Phase {
    const ALL: [Self; 10] = [
        Self::Loading,
        Self::Layers,
        Self::Logits,
        Self::Transport,
        Self::Loss,
        Self::Backward,
        Self::Lowest,
        Self::Update,
        Self::Saving,
        Self::Answers,
    ];

    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Layers => "layers",
            Self::Logits => "logits",
            Self::Transport => "transport",
            Self::Loss => "loss",
            Self::Backward => "backward",
            Self::Lowest => "lowest layer",
            Self::Update => "update",
            Self::Saving => "saving",
            Self::Answers => "answers",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// How much.
    pub bytes: u64,
    /// When it is there; always, where nothing is named.
    pub phases: Vec<Phase>,
    /// Whether it is still there while the other process holds the card.
    pub stays: bool,
    /// Whether it is in the machine's memory while the card's is counted: no part of any sum.
    pub on_host: bool,
}

impl Part {
    /// There from start to end.
    pub fn always(name: &'static str, bytes: u64) -> Self {
        Self::during(name, bytes, &[])
    }

    /// There in these phases only.
    pub fn during(name: &'static str, bytes: u64, phases: &[Phase]) -> Self {
        Self {
            name,
            bytes,
            phases: phases.to_vec(),
            stays: false,
            on_host: false,
        }
    }

    /// In the machine's memory while the card's is counted.
    pub fn on_host(name: &'static str, bytes: u64) -> Self {
        Self {
            on_host: true,
            ..Self::always(name, bytes)
        }
    }

    /// The same, kept while the other process holds the card.
    pub fn staying(self) -> Self {
        Self {
            stays: true,
            ..self
        }
    }

    fn is_there(&self, phase: Phase) -> bool {
        !self.on_host && (self.phases.is_empty() || self.phases.contains(&phase))
    }
}

/// What one process takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// `teacher` or `trainer`.
    pub name: &'static str,
    /// Every part; parts of nothing are left out.
    pub parts: Vec<Part>,
    /// The most that it takes at one time.
    pub peak_bytes: u64,
    /// When that is.
    pub peak_phase: Phase,
    /// What it still takes while the other one holds the card.
    pub stays_bytes: u64,
}

impl Process {
    /// Finds the peak, and adds what the allocator holds without using it: `slack`, a share of the peak.
    pub fn new(name: &'static str, parts: Vec<Part>, slack: f64) -> Self {
        let mut parts: Vec<Part> = parts.into_iter().filter(|part| part.bytes > 0).collect();
        let (most, peak_phase) = peak(&parts);
        parts.push(Part::always(
            "allocator slack",
            (most as f64 * slack) as u64,
        ));
        let staying = parts.iter().filter(|part| part.stays);
        Self {
            name,
            peak_bytes: peak(&parts).0,
            peak_phase,
            stays_bytes: staying.map(|part| part.bytes).sum(),
            parts,
        }
    }

    /// The part of this name, or nothing.
    pub fn bytes_of(&self, name: &str) -> u64 {
        let parts = self.parts.iter().filter(|part| part.name == name);
        parts.map(|part| part.bytes).sum()
    }

    /// Whether `part` is there at the peak.
    pub fn is_at_peak(&self, part: &Part) -> bool {
        part.is_there(self.peak_phase)
    }
}

/// The largest sum over the phases, and the first phase that has it.
fn peak(parts: &[Part]) -> (u64, Phase) {
    let sum = |phase: Phase| -> u64 {
        let there = parts.iter().filter(|part| part.is_there(phase));
        there.map(|part| part.bytes).sum()
    };
    let sums = Phase::ALL.map(|phase| (sum(phase), phase));
    let first = (0, Phase::Loading);
    sums.into_iter()
        .fold(first, |most, one| if one.0 > most.0 { one } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_the_largest_phase_and_not_the_sum_of_all() {
        let parts = vec![
            Part::always("weights", 100),
            Part::during("chunk", 30, &[Phase::Loss]),
            Part::during("inputs", 15, &[Phase::Loss, Phase::Backward]),
            Part::during("layer", 40, &[Phase::Backward]),
            Part::always("context", 5).staying(),
            Part::always("nothing", 0),
            Part::on_host("elsewhere", 1000),
        ];
        let process = Process::new("trainer", parts, 0.1);
        assert_eq!(process.peak_phase, Phase::Backward);
        // 100 + 15 + 40 + 5, and a tenth of it.
        assert_eq!((process.peak_bytes, process.stays_bytes), (176, 5));
        assert_eq!(process.bytes_of("allocator slack"), 16);
        assert!(!process.parts.iter().any(|part| part.name == "nothing"));
        let there = |name: &str| {
            let part = process.parts.iter().find(|part| part.name == name);
            process.is_at_peak(part.unwrap())
        };
        assert!(there("layer") && there("weights") && !there("chunk"));
        assert!(!there("elsewhere"));
    }
}
