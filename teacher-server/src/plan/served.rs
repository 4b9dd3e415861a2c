//! Provides what of a plan is served, and in which order: the corpus as it is now, though a cache keeps what it was.

use std::collections::HashMap;

/// Places in the plan's order of the sequences that are served, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Unset where all are served in the plan's order.
    places: Option<Vec<u64>>,
    /// Where each of `places` is served.
    positions: HashMap<u64, u64>,
}

impl Served {
    /// These places of `count`.
    pub fn of(places: Vec<u64>, count: u64) -> Self {
        if places.iter().copied().eq(0..count) {
            return Self::default();
        }
        let positions = places.iter().copied().zip(0..).collect();
        Self {
            places: Some(places),
            positions,
        }
    }

    /// The places, unless all are served in the plan's order.
    pub fn places(&self) -> Option<&[u64]> {
        self.places.as_deref()
    }

    /// How many sequences of a plan of `count` are served.
    pub fn count(&self, count: u64) -> u64 {
        self.places
            .as_ref()
            .map_or(count, |places| places.len() as u64)
    }

    /// Place of the sequence that is served at `position`, of a plan of `count`.
    pub fn place(&self, position: u64, count: u64) -> Option<u64> {
        match &self.places {
            None => (position < count).then_some(position),
            Some(places) => places.get(usize::try_from(position).ok()?).copied(),
        }
    }

    /// Where the sequence at `place` is served; `None` where it is not.
    pub fn position(&self, place: u64) -> Option<u64> {
        match self.places {
            None => Some(place),
            Some(_) => self.positions.get(&place).copied(),
        }
    }
}
