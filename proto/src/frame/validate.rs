//! Provides the rules every frame obeys, checked before writing and after reading.

use half::f16;

use super::Frame;
use crate::{Error, Fingerprint, Result, Rows, StateCoding, StateKind, limits};

/// What f32 may lose of a logit, its distance and its mass, relative to them; eight last bits of them.
const F32_SLACK: f64 = 8.0 * f32::EPSILON as f64;

impl Frame {
    /// Checks every rule of FORMAT.md that does not depend on the bytes.
    ///
    /// # Errors
    /// `Invalid` naming the field and what is wrong with it.
    pub fn validate(&self) -> Result<()> {
        let check = |fine: bool, what, reason: &str| self.rule(fine, what, || reason.to_owned());
        let tokens = self.token_ids.len();
        check(tokens > 0, "token ids", "there are none")?;
        check(
            self.byte_offsets.len() == tokens,
            "byte offsets",
            "not one for every token",
        )?;
        check(
            self.target_mask.len() == tokens,
            "target mask",
            "not one for every token",
        )?;
        check(
            self.target_mask.first() != Some(&true),
            "target mask",
            "the first token cannot be a target",
        )?;
        check(
            Fingerprint::of(self.text.as_bytes()) == self.text_digest,
            "text digest",
            "is not the text's",
        )?;
        let ends = self.byte_offsets.iter();
        let inside = ends
            .clone()
            .all(|(start, end)| start <= end && *end as usize <= self.text.len());
        check(inside, "byte offsets", "outside the text")?;
        let targets = self.target_mask.iter().filter(|&&target| target).count();
        self.rule(targets == self.rows.rows, "rows", || {
            format!("{} for {targets} targets", self.rows.rows)
        })?;
        if let Some((what, reason)) = self.view.as_ref().and_then(|view| view.flaw(&self.text)) {
            self.rule(false, what, || reason)?;
        }
        self.validate_rows(&self.rows)?;
        self.validate_maxima()
    }

    /// Checks that no logit is further above its row's maximum than rounding lifts it: the shift that restores the kept
    /// mass is at most the largest rounding of a distance of the row.
    fn validate_maxima(&self) -> Result<()> {
        let rows = &self.rows;
        let tau = rows.temperatures.first().copied().unwrap_or_default();
        let row_of = rows.logits.chunks_exact(rows.k.max(1)).zip(&rows.max);
        for (row, (logits, &max)) in row_of.enumerate() {
            let top = logits.iter().copied().fold(f32::MIN, f32::max);
            if top <= max {
                continue;
            }
            let bottom = logits.iter().copied().fold(f32::MAX, f32::min);
            let [top, bottom, max, tau] = [top, bottom, max, tau].map(f64::from);
            let farthest = (max - bottom).max(0.0);
            let slack = rows.coding.rounding(farthest) + F32_SLACK * (max.abs() + farthest + tau);
            self.rule(top - max <= slack, "logits", || {
                format!("{top} in row {row} is above the row's maximum, {max}")
            })?;
        }
        Ok(())
    }

    /// Checks what only a writer must keep to: a reader finds it broken by rounding, or not at all.
    pub(super) fn validate_codings(&self) -> Result<()> {
        let rows = &self.rows;
        let mut row_of = rows.logits.chunks_exact(rows.k.max(1)).zip(&rows.max);
        self.rule(
            row_of.all(|(logits, max)| logits.iter().all(|logit| logit <= max)),
            "logits",
            || "above the row's maximum".to_owned(),
        )?;
        let halves = rows
            .state
            .iter()
            .filter(|state| state.coding == StateCoding::F16);
        self.rule(
            halves
                .flat_map(|state| &state.values)
                .all(|value| value.abs() <= f16::MAX.to_f32()),
            "state",
            || "beyond the range of half precision; store it as i8".to_owned(),
        )
    }

    /// Checks that every token id is a row of an embedding with `vocab_size` rows.
    ///
    /// # Errors
    /// `Invalid` naming the first id that is not.
    pub fn check_tokens(&self, vocab_size: usize) -> Result<()> {
        let outside = self.token_ids.iter().find(|&&id| id as usize >= vocab_size);
        self.rule(outside.is_none(), "token ids", || {
            format!(
                "id {} is outside the vocabulary of {vocab_size}",
                outside.copied().unwrap_or_default()
            )
        })
    }

    fn validate_rows(&self, rows: &Rows) -> Result<()> {
        let check = |fine: bool, what, reason: &str| self.rule(fine, what, || reason.to_owned());
        let entries = rows.rows.saturating_mul(rows.k);
        check(rows.vocab_size > 0, "vocabulary", "is empty")?;
        let in_limits =
            rows.k > 0 && rows.k <= limits::KEPT_ENTRIES_MAX && rows.k <= rows.vocab_size as usize;
        self.rule(in_limits, "k", || {
            format!("{} of {} entries", rows.k, rows.vocab_size)
        })?;
        check(
            rows.ids.len() == entries && rows.logits.len() == entries,
            "rows",
            "not k ids and logits a row",
        )?;
        let counts = if rows.estimator.is_drawn() {
            entries
        } else {
            0
        };
        check(
            rows.counts.len() == counts,
            "counts",
            "do not fit the estimator",
        )?;
        let padding = |count: &u32| rows.estimator.is_padding(*count);
        let mut counts = rows.counts.chunks_exact(rows.k.max(1));
        check(
            counts.all(|counts| !counts.iter().all(padding)),
            "counts",
            "a row holds padding only",
        )?;
        check(
            rows.coding.is_valid(),
            "step",
            "must be a positive number of nats; graded, a multiple of 2^-10 up to 1",
        )?;
        for ids in rows.ids.chunks_exact(rows.k.max(1)) {
            check(
                ids.is_sorted_by(|a, b| a < b),
                "ids",
                "not strictly increasing",
            )?;
            check(
                ids.last().is_none_or(|&id| id < rows.vocab_size),
                "ids",
                "outside the vocabulary",
            )?;
        }
        let columns = [&rows.logits, &rows.max, &rows.mean, &rows.std]
            .into_iter()
            .chain(&rows.logsumexp);
        check(
            columns.clone().flatten().all(|value| value.is_finite()),
            "rows",
            "NaN or infinity",
        )?;
        check(
            columns.skip(1).all(|column| column.len() == rows.rows),
            "row statistics",
            "not one for every row",
        )?;
        check(rows.std.iter().all(|&std| std >= 0.0), "std", "is negative")?;
        check(
            rows.logsumexp.len() == rows.temperatures.len(),
            "logsumexp",
            "not one column a temperature",
        )?;
        let temperatures = rows.temperatures.len() <= limits::TEMPERATURES_MAX
            && rows
                .temperatures
                .iter()
                .all(|tau| tau.is_finite() && *tau > 0.0);
        check(
            temperatures,
            "temperatures",
            "must be few, positive and finite",
        )?;
        let Some(state) = &rows.state else {
            return Ok(());
        };
        check(
            state.rank > 0 && state.layer_rank() <= limits::STATE_RANK_MAX,
            "state rank",
            "outside its limits",
        )?;
        let layers = state.layers == 1 || state.kind == StateKind::Hidden;
        check(
            layers
                && (1..=limits::STATE_LAYERS_MAX).contains(&state.layers)
                && state.rank.is_multiple_of(state.layers),
            "state layers",
            "more than there may be, or of unlike length",
        )?;
        check(
            state.values.len() == rows.rows * state.rank,
            "state",
            "not `rank` numbers a row",
        )?;
        check(
            state.values.iter().all(|value| value.is_finite()),
            "state",
            "NaN or infinity",
        )
    }

    fn rule(&self, fine: bool, what: &'static str, reason: impl FnOnce() -> String) -> Result<()> {
        if fine {
            Ok(())
        } else {
            Err(Error::Invalid {
                index: self.index,
                what,
                reason: reason(),
            })
        }
    }
}
