//! Provides the decision which batch is computed next: what readers need soonest, never far ahead of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::{Error, plan::Plan};

/// What a reader asks for of what is served, in its order.
#[derive(Debug, Clone)]
pub enum Order {
    /// Every frame from this position on.
    From(u64),
    /// Those at these positions.
    List(Arc<[u64]>),
}

impl Order {
    /// Position in what is served of the `nth` frame asked for; past the end it may be of none.
    pub fn position(&self, nth: usize) -> Option<u64> {
        match self {
            Self::From(first) => first.checked_add(nth as u64),
            Self::List(positions) => positions.get(nth).copied(),
        }
    }

    /// Place in the plan of the `nth` frame asked for.
    pub fn at(&self, nth: usize, plan: &Plan) -> Option<u64> {
        plan.place(self.position(nth)?)
    }
}

/// One reader's place in its order.
struct Place {
    order: Order,
    position: usize,
    /// When a batch was last chosen for this reader, for fairness among equals.
    served: u64,
}

/// Readers and batches under way.
#[derive(Default)]
pub(super) struct Demand {
    readers: BTreeMap<u64, Place>,
    next_reader: u64,
    clock: u64,
    in_flight: HashSet<u64>,
    failed: HashMap<u64, Arc<Error>>,
    /// The teacher's turn, while it has one.
    window: Option<Window>,
}

/// What a turn is for.
struct Window {
    batches: BTreeSet<u64>,
    /// Scores with a number below this.
    scores: u64,
}

impl Demand {
    /// Number of open readers.
    pub fn readers(&self) -> usize {
        self.readers.len()
    }

    /// Adds a reader. What failed for a reason that may have passed is tried again for it.
    pub fn open(&mut self, order: Order) -> u64 {
        self.failed.retain(|_, error| !error.is_transient());
        let id = self.next_reader;
        self.next_reader += 1;
        let place = Place {
            order,
            position: 0,
            served: 0,
        };
        self.readers.insert(id, place);
        id
    }

    /// Moves a reader to its next frame.
    pub fn advance(&mut self, reader: u64) {
        if let Some(place) = self.readers.get_mut(&reader) {
            place.position += 1;
        }
    }

    /// Removes a reader, and with it the reason to compute for it.
    pub fn close(&mut self, reader: u64) {
        self.readers.remove(&reader);
    }

    /// What stopped a batch, if something did.
    pub fn failure(&self, batch: u64) -> Option<Arc<Error>> {
        self.failed.get(&batch).cloned()
    }

    /// A batch has left the teacher and the packer, well or not.
    pub fn finish(&mut self, batch: u64, failure: Option<Arc<Error>>) {
        self.in_flight.remove(&batch);
        if let Some(error) = failure {
            self.failed.insert(batch, error);
        }
    }

    /// The batch to compute now, marked as under way; `None` where nobody needs one.
    ///
    /// Of all readers the one whose next missing frame is nearest comes first; among equals the one served longest ago.
    /// A batch is started only when its last frame is at most `queue` frames ahead of that reader, or when the reader
    /// stands at the batch itself.
    pub fn next_batch(
        &mut self,
        plan: &Plan,
        queue: usize,
        contains: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        self.next_among(plan, queue, contains, |ahead, batch| {
            ahead == 0 || ahead + plan.batch(batch).len() <= queue
        })
    }

    /// Whether a reader stands before a frame that nobody is computing.
    pub fn is_needed(&self, plan: &Plan, contains: impl Fn(u64) -> bool) -> bool {
        let mut next = self.readers.values();
        next.any(|place| self.missing(place, plan, 1, &contains).is_some())
    }

    /// Begins a turn, unless one is going on: the batches of the next `window` frames of every reader, and the `scores` below
    /// this number.
    pub fn open_window(
        &mut self,
        plan: &Plan,
        window: usize,
        contains: impl Fn(u64) -> bool,
        scores: u64,
    ) {
        if self.window.is_some() {
            return;
        }
        let places = self.readers.values();
        let ahead = places.flat_map(|place| {
            (0..window).map_while(|ahead| place.order.at(place.position + ahead, plan))
        });
        let missing = ahead.filter(|&index| !contains(index));
        let batches = missing.map(|index| plan.batch_of(index)).collect();
        self.window = Some(Window { batches, scores });
    }

    /// The number that scores of this turn are below.
    pub fn window_scores(&self) -> u64 {
        self.window.as_ref().map_or(0, |window| window.scores)
    }

    /// Ends the turn.
    pub fn close_window(&mut self) {
        self.window = None;
    }

    /// As [`Self::next_batch`], of the batches of this turn only.
    pub fn next_of_window(
        &mut self,
        plan: &Plan,
        window: usize,
        contains: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let turn = self.window.take()?;
        let outside = |index| contains(index) || !turn.batches.contains(&plan.batch_of(index));
        let batch = self.next_among(plan, window, outside, |_, _| true);
        self.window = Some(turn);
        batch
    }

    /// Number of places ahead of a reader, `within` at most, and batch of the first frame that is neither kept nor under way
    /// nor failed.
    fn missing(
        &self,
        place: &Place,
        plan: &Plan,
        within: usize,
        contains: impl Fn(u64) -> bool,
    ) -> Option<(usize, u64)> {
        (0..within.max(1)).find_map(|ahead| {
            let index = place.order.at(place.position + ahead, plan)?;
            let batch = plan.batch_of(index);
            let open = !contains(index)
                && !self.in_flight.contains(&batch)
                && !self.failed.contains_key(&batch);
            open.then_some((ahead, batch))
        })
    }

    fn next_among(
        &mut self,
        plan: &Plan,
        within: usize,
        contains: impl Fn(u64) -> bool,
        is_near: impl Fn(usize, u64) -> bool,
    ) -> Option<u64> {
        let candidates = self.readers.iter().filter_map(|(&reader, place)| {
            let (ahead, batch) = self.missing(place, plan, within, &contains)?;
            is_near(ahead, batch).then_some((ahead, place.served, reader, batch))
        });
        let (_, _, reader, batch) = candidates.min()?;
        self.clock += 1;
        if let Some(place) = self.readers.get_mut(&reader) {
            place.served = self.clock;
        }
        self.in_flight.insert(batch);
        Some(batch)
    }
}
