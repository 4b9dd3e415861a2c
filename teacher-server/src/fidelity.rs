//! Provides the comparison of stored rows with the whole distribution that they stand for.

use distill_proto::Rows;
use serde::Serialize;

/// Temperature of the stand-in for a student: flatter than the teacher, as a weaker model is.
const STUDENT_TEMPERATURE: f64 = 2.0;

/// Means over rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Fidelity {
    /// Rows compared.
    pub rows: u64,
    /// KL(full || stored) with what is not stored as one bucket: what the coding of values adds, nats.
    pub kl_coding: f64,
    /// KL(full || stored) with the bucket spread evenly over its ids: what a reader does not learn, nats.
    pub kl_full: f64,
    /// Share of rows whose largest stored entry is the largest of all.
    pub top1_agreement: f64,
    /// Cosine between the gradients of KL from the stored row and from the whole distribution, in the logits of a student
    /// that is the teacher at temperature 2.
    pub gradient_cosine: f64,
    /// Mass of the stored ids.
    pub covered_mass: f64,
}

impl Fidelity {
    /// Adds the rows of one sequence from `first` on, as many as there are `logits` `[c, V]`.
    pub fn add(&mut self, stored: &Rows, first: usize, logits: &[f32]) {
        let vocab = stored.vocab_size as usize;
        let rows = (first..stored.rows).zip(logits.chunks_exact(vocab.max(1)));
        for (i, logits) in rows {
            let row = Row::new(stored, i);
            let full = softmax(logits, 1.0);
            let student = softmax(logits, STUDENT_TEMPERATURE);
            let (kl_coding, kl_full) = row.divergences(&full);
            self.kl_coding += kl_coding;
            self.kl_full += kl_full;
            self.top1_agreement += f64::from(u8::from(row.argmax() == argmax(&full)));
            self.gradient_cosine += row.gradient_cosine(&full, &student);
            self.covered_mass += row.entries.iter().map(|&(id, ..)| full[id]).sum::<f64>();
            self.rows += 1;
        }
    }

    /// The means.
    pub fn mean(self) -> Self {
        let n = self.rows.max(1) as f64;
        Self {
            rows: self.rows,
            kl_coding: self.kl_coding / n,
            kl_full: self.kl_full / n,
            top1_agreement: self.top1_agreement / n,
            gradient_cosine: self.gradient_cosine / n,
            covered_mass: self.covered_mass / n,
        }
    }
}

/// One stored row.
struct Row {
    /// Id, probability as stored, weight in sums over the distribution.
    entries: Vec<(usize, f64, f64)>,
    /// Whether ids that are not stored weigh anything: only then is there a bucket.
    biased: bool,
}

impl Row {
    fn new(rows: &Rows, i: usize) -> Self {
        let range = i * rows.k..(i + 1) * rows.k;
        let at_one = rows.temperatures.iter().position(|&tau| tau == 1.0);
        let lse = at_one.and_then(|q| rows.logsumexp.get(q)?.get(i)).copied();
        let lse = f64::from(lse.unwrap_or_default());
        let ids = rows.ids.get(range.clone()).unwrap_or_default();
        let logits = rows.logits.get(range.clone()).unwrap_or_default();
        let counts = rows.counts.get(range).unwrap_or_default();
        let mut entries = Vec::new();
        for (position, (&id, &logit)) in ids.iter().zip(logits).enumerate() {
            let count = counts.get(position).copied().unwrap_or_default();
            if rows.estimator.is_padding(count) {
                continue;
            }
            let p = (f64::from(logit) - lse).exp();
            entries.push((id as usize, p, count));
        }
        let drawn = rows.estimator.is_drawn();
        let in_head = |count: u32| rows.estimator.has_head() && count == 0;
        let head = entries.iter().filter(|(.., count)| in_head(*count));
        let head: f64 = head.map(|(_, p, _)| p).sum();
        let of_draws = entries.iter().filter(|(.., count)| !in_head(*count));
        let draws: f64 = of_draws.map(|(.., count)| f64::from(*count)).sum();
        let weight = |p: f64, count: u32| match drawn {
            false => p,
            true if in_head(count) => p,
            true => (1.0 - head).max(0.0) * f64::from(count) / draws.max(1.0),
        };
        Self {
            entries: entries
                .iter()
                .map(|&(id, p, count)| (id, p, weight(p, count)))
                .collect(),
            biased: !drawn,
        }
    }

    fn argmax(&self) -> Option<usize> {
        let best = self.entries.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|entry| entry.0)
    }

    /// With one bucket, and with the bucket spread evenly.
    fn divergences(&self, full: &[f64]) -> (f64, f64) {
        let term = |p: f64, q: f64| {
            if p > 0.0 {
                p * (p / q.max(1e-300)).ln()
            } else {
                0.0
            }
        };
        let kept: f64 = self
            .entries
            .iter()
            .map(|&(id, q, _)| term(full[id], q))
            .sum();
        let stored: f64 = self.entries.iter().map(|entry| entry.1).sum();
        let (tail_stored, mut tail) = ((1.0 - stored).max(0.0), full.to_vec());
        for &(id, ..) in &self.entries {
            tail[id] = 0.0;
        }
        let tail_mass: f64 = tail.iter().sum();
        let bucket = term(tail_mass, tail_stored);
        let count = (full.len() - self.entries.len()).max(1) as f64;
        let spread: f64 = tail.iter().map(|&p| term(p, tail_stored / count)).sum();
        (kept + bucket, kept + spread)
    }

    /// Gradient of KL(p || q) in the student's logits: q - p; of a bucket, q - p_t q_{u|t} inside it.
    fn gradient_cosine(&self, full: &[f64], student: &[f64]) -> f64 {
        let mut gradient = student.to_vec();
        if self.biased {
            let stored: f64 = self.entries.iter().map(|entry| entry.1).sum();
            let inside: f64 = self.entries.iter().map(|&(id, ..)| student[id]).sum();
            let factor = 1.0 - (1.0 - stored).max(0.0) / (1.0 - inside).max(1e-300);
            gradient.iter_mut().for_each(|g| *g *= factor);
            for &(id, ..) in &self.entries {
                gradient[id] = student[id];
            }
        }
        for &(id, _, weight) in &self.entries {
            gradient[id] -= weight;
        }
        let exact = student.iter().zip(full).map(|(q, p)| q - p);
        let (mut dot, mut own, mut other) = (0.0, 0.0, 0.0);
        for (g, e) in gradient.iter().zip(exact) {
            dot += g * e;
            own += g * g;
            other += e * e;
        }
        dot / (own.sqrt() * other.sqrt()).max(1e-300)
    }
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled = |y: f32| ((f64::from(y) - f64::from(max)) / temperature).exp();
    let mut p: Vec<f64> = logits.iter().copied().map(scaled).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

fn argmax(p: &[f64]) -> Option<usize> {
    let best = p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use distill_proto::{Estimator, ValueCoding};

    use super::*;
    use crate::selection::{Keep, RowKey, select_rows};

    const VOCAB: usize = 40;

    fn rows(keep: &Keep, logits: &[f32]) -> Rows {
        let count = logits.len() / VOCAB;
        let keys: Vec<RowKey> = (0..count as u64)
            .map(|position| RowKey {
                sequence: 5,
                position,
            })
            .collect();
        let selected = select_rows(logits, VOCAB, keep, &[1.0], &keys).unwrap();
        let block = selected.block(0..count, keep.estimator).unwrap();
        Rows {
            rows: count,
            k: block.k,
            vocab_size: VOCAB as u32,
            estimator: keep.estimator,
            coding: ValueCoding::F16,
            ids: block.ids,
            logits: block.logits,
            counts: block.counts,
            max: selected.statistics.iter().map(|s| s.max).collect(),
            mean: vec![0.0; count],
            std: vec![1.0; count],
            temperatures: vec![1.0],
            logsumexp: vec![selected.statistics.iter().map(|s| s.logsumexp[0]).collect()],
            state: None,
        }
    }

    fn logits(rows: usize) -> Vec<f32> {
        (0..rows * VOCAB)
            .map(|i| ((i * i * 7 + i * 3) % 101) as f32 / 12.0)
            .collect()
    }

    fn measured(keep: &Keep, logits: &[f32]) -> Fidelity {
        let mut fidelity = Fidelity::default();
        fidelity.add(&rows(keep, logits), 0, logits);
        fidelity.mean()
    }

    #[test]
    fn the_whole_row_loses_nothing() {
        let found = measured(&Keep::top_k(VOCAB), &logits(6));
        assert!(
            found.kl_full.abs() < 1e-6 && found.kl_coding.abs() < 1e-6,
            "{found:?}"
        );
        assert!((found.gradient_cosine - 1.0).abs() < 1e-9 && found.top1_agreement == 1.0);
        assert!((found.covered_mass - 1.0).abs() < 1e-9);
    }

    #[test]
    fn fewer_entries_lose_more_but_only_beyond_the_bucket() {
        let logits = logits(12);
        let few = measured(&Keep::top_k(4), &logits);
        let more = measured(&Keep::top_k(12), &logits);
        assert!(
            few.kl_full > more.kl_full && more.kl_full > 1e-4,
            "{few:?} {more:?}"
        );
        assert!(few.kl_coding.abs() < 1e-6);
        assert!(few.gradient_cosine < more.gradient_cosine);
        assert!(few.covered_mass < more.covered_mass && few.top1_agreement == 1.0);
    }

    #[test]
    fn draws_are_right_on_average_and_many_come_close() {
        let keep = |draws| Keep {
            estimator: Estimator::HeadSampled,
            top_k: 4,
            draws,
            sample_seed: 0,
        };
        let logits = logits(12);
        let few = measured(&keep(4), &logits);
        let many = measured(&keep(4000), &logits);
        assert!(
            // 4000 draws miss the tail by a hundredth; the gradient is about 0.2 long.
            many.gradient_cosine > 0.998 && few.gradient_cosine < many.gradient_cosine,
            "{few:?} {many:?}"
        );
        assert!(
            few.top1_agreement == 1.0 && few.gradient_cosine > 0.5,
            "{few:?}"
        );
    }
}
