//! Provides what the trainer's losses take: a chunk of logits, the hidden states of the targets, transport's matrices.

use distill_model::HEAD_TILE_ROWS;

use crate::loss::{AlignConfig, AlignLoss, CARD_ENTRIES_MAX, Cost, LossConfig, TILE_ENTRIES};

use super::config::Place;

const F32: u64 = 4;
const F64: u64 = 8;
/// Rows of a half-precision head that are widened at one time.
const TILE_ROWS: u64 = HEAD_TILE_ROWS as u64;
/// epsilon below which the solver's kernel is in f64 as a rule.
const F32_EPSILON_MIN: f64 = 0.0125;

/// f32 matrices over all pairs of positions at most while a card solves: similarities, costs and plan, and three in f64, of the
/// prior or of a softmax's gradient (loss/transport_card.rs).
const MATRICES_ON_CARD: u64 = 12;

/// What the sizes of a loss depend on.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The loss.
    pub loss: &'a LossConfig,
    /// Where the head is.
    pub place: Place,
    /// Bytes of a hidden state's number, and of the head's.
    pub element: u64,
    /// Targets of a sequence at most: one for every token.
    pub rows: u64,
    /// Tokens of a pass.
    pub tokens: u64,
    /// d.
    pub hidden_size: u64,
    /// V.
    pub vocab_size: u64,
    /// Coordinates of the state that comes with every row.
    pub state_rank: u64,
    /// Entries kept of a row.
    pub entries: u64,
}

impl Head<'_> {
    /// Logits of a chunk in f32: the product, on which the gradient is written on the CPU; a card has the gradient beside it, in
    /// the head's type, and what the loss says of all rows, and the CPU, where its head is not f32, the parts that the product is put together from, with one widened part of the head.
    pub fn chunk(&self) -> u64 {
        let chunk = self.rows.min(self.loss.chunk_rows as u64) * self.vocab_size * F32;
        match (self.place, self.element) {
            (Place::Cpu, F32) => chunk,
            (Place::Card, element) => chunk + chunk / F32 * element + self.terms(),
            _ => 2 * chunk + TILE_ROWS.min(self.vocab_size) * self.hidden_size * F32,
        }
    }

    /// What a card is told of a sequence's rows, and their values (loss/card_rows.rs): kept ids and the label, p and ln p in f64, and
    /// fourteen numbers beside them.
    fn terms(&self) -> u64 {
        let (ids, pairs) = (self.entries + 1, 2 * self.entries + 14);
        self.rows * (F32 * ids + F64 * pairs)
    }

    /// Hidden states of a sequence's targets and of the pass, with their gradients in f32.
    pub fn hidden(&self) -> u64 {
        let Self {
            element,
            rows,
            tokens,
            hidden_size,
            ..
        } = *self;
        let one =
            rows * hidden_size * (element + 4 * F32) + tokens * hidden_size * (element + 3 * F32);
        // The states of further layers, with the gradient in them.
        let further = self.pairs_of_layers().saturating_sub(1);
        one + further * 2 * F32 * hidden_size * (rows + tokens)
    }

    /// Pairs of layers whose hidden states are compared.
    fn pairs_of_layers(&self) -> u64 {
        if self.loss.needs_states() {
            self.loss.align.layers.len() as u64
        } else {
            0
        }
    }

    /// Transport: matrices over pairs of positions, and what they are made from.
    pub fn transport(&self) -> u64 {
        let Self {
            rows,
            hidden_size,
            state_rank,
            ..
        } = *self;
        if self.loss.ot_weight == 0.0 {
            return 0;
        }
        let align = &self.loss.align;
        let mut sum = self.matrices() * F32 * rows * rows;
        if align.uses_kl() {
            sum += F32 * rows * hidden_size;
        }
        if align.needs_logits() {
            // Coordinates, anchors, and H G.
            sum += F32 * rows * (state_rank + 2 * hidden_size);
        }
        // Y, then X, Y P, both divided by their norms, and a gradient of each.
        sum += self.pairs_of_layers() * F32 * rows * (state_rank + 6 * hidden_size);
        sum
    }

    /// f32 matrices over all pairs of positions that exist at one time, wherever they are solved.
    fn matrices(&self) -> u64 {
        let align = &self.loss.align;
        let one_block = align.block_size > 0 || self.rows * self.rows <= CARD_ENTRIES_MAX as u64;
        match self.place {
            Place::Card if one_block && align.is_for_a_card() => MATRICES_ON_CARD,
            _ => matrices(align),
        }
    }

    /// What of [`transport`](Self::transport) is still there beside the logits: on a card its plan, of all matrices.
    pub fn transport_kept(&self) -> u64 {
        let solved = match self.place {
            Place::Card if self.loss.ot_weight > 0.0 => self.matrices().saturating_sub(1),
            _ => 0,
        };
        self.transport() - solved * F32 * self.rows * self.rows
    }

    /// What is there beside that until the plan is made: first the rows of the head, then the solver's matrices.
    pub fn transport_made(&self) -> u64 {
        let solved = self.transport() - self.transport_kept();
        solved.max(self.gathered())
    }

    /// On a card the rows of the head behind a row's entries are gathered a tile at a time, widened and weighted, and added up;
    /// the CPU reads them in place. Nothing of it is left when the logits are made.
    fn gathered(&self) -> u64 {
        let is_needed = self.loss.ot_weight > 0.0 && self.loss.align.uses_kl();
        match self.place {
            Place::Card if is_needed => {
                let entries = self.rows * self.entries;
                entries * 3 * F32
                    + entries.min(TILE_ENTRIES as u64) * self.hidden_size * 2 * F32
                    + F32 * self.rows * self.hidden_size
            }
            _ => 0,
        }
    }

    /// What similarities of whole logits keep for the whole run: P and its centred form [d, r], and G [d, d].
    pub fn logit_space(&self) -> u64 {
        match self.loss.needs_state() {
            true => F32 * self.hidden_size * (2 * self.state_rank + self.hidden_size),
            false => 0,
        }
    }

    /// Elements of the projections of the teacher's hidden states; 0 without one.
    pub fn projection_elements(&self) -> u64 {
        self.pairs_of_layers() * self.state_rank * self.hidden_size
    }
}

/// f32 matrices over all pairs of positions that exist at one time where the host solves.
fn matrices(align: &AlignConfig) -> u64 {
    let kernel = if align.epsilon() < F32_EPSILON_MIN {
        2
    } else {
        1
    };
    // The cost, the cost with the prior, the solver's kernel; or the adjoint's cost, plan, and kernel in f64.
    let solving = if align.block_size == 0 {
        let added = u64::from(align.position(false) + align.bytes + align.links > 0.0);
        let through_plan = align.loss == AlignLoss::Sharp || align.through_plan;
        (1 + added + kernel).max(if through_plan { 4 } else { 3 })
    } else {
        // Block by block: all costs, the blocks' gradients, and those put together.
        3
    };
    let of = |cost: Cost| match cost {
        Cost::Kl | Cost::Hidden => 0,
        // S on its device and its softmax; distances, scaled ones and the gradient in them.
        Cost::SoftmaxSimilarity | Cost::SquaredEuclidean => 2,
    };
    // What is paid beside it has a matrix and a gradient of its own.
    let paid = match align.paid() {
        paid if paid != align.solved() => 2 + of(paid),
        _ => 0,
    };
    solving + of(align.solved()) + paid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(loss: &LossConfig) -> Head<'_> {
        Head {
            loss,
            place: Place::Card,
            element: 2,
            rows: 512,
            tokens: 512,
            hidden_size: 1536,
            vocab_size: 151_936,
            state_rank: 0,
            entries: 24,
        }
    }

    #[test]
    fn a_chunk_is_what_exists_of_the_logits() {
        let loss = LossConfig::default();
        let card = head(&loss);
        // 128 rows of 151,936 in f32 are 77.8 MB.
        let chunk = 128 * 151_936 * 4;
        // Of all 512 rows 24 ids and the label, p and ln p of each id, 9 terms and 5 values.
        let terms = 512 * (25 * 4 + (2 * 24 + 9 + 5) * 8);
        assert_eq!(card.chunk(), chunk + chunk / 2 + terms);
        let cpu = Head {
            place: Place::Cpu,
            element: 4,
            ..card
        };
        assert_eq!(cpu.chunk(), chunk);
        let short = Head { rows: 100, ..cpu };
        assert_eq!(short.chunk(), 100 * 151_936 * 4);
        // [N, V] itself, in f32, would be four times a chunk, and its gradient as much again.
        assert!(card.chunk() < 512 * 151_936 * 4);
    }

    #[test]
    fn transport_counts_the_matrices_of_its_settings() {
        let mut loss = LossConfig {
            ot_weight: 0.5,
            ..LossConfig::default()
        };
        let pairs = 4 * 512 * 512;
        let cpu = |loss: &LossConfig, state_rank| {
            let head = Head {
                place: Place::Cpu,
                element: 4,
                state_rank,
                ..head(loss)
            };
            (head.transport(), head.logit_space())
        };
        // A card solves what one of its blocks does well.
        let card = |rows| Head {
            rows,
            ..head(&loss)
        };
        assert_eq!(card(512).matrices(), 12);
        assert_eq!(card(2048).matrices(), 3);
        // Cost, with its prior, kernel; and E.
        assert_eq!(cpu(&loss, 0), (3 * pairs + 4 * 512 * 1536, 0));
        loss.align.loss = AlignLoss::Sharp;
        assert_eq!(cpu(&loss, 0).0, 4 * pairs + 4 * 512 * 1536);
        loss.align.cost = Cost::SoftmaxSimilarity;
        let cosine = 6 * pairs + 4 * 512 * (128 + 2 * 1536);
        assert_eq!(cpu(&loss, 128), (cosine, 4 * 1536 * (2 * 128 + 1536)));
        loss.ot_weight = 0.0;
        assert_eq!(cpu(&loss, 128), (0, 0));
    }
}
