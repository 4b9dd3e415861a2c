//! Provides the positions that a plan is solved between: those whose mass is above 0.

use std::borrow::Cow;

/// The rows and columns that carry mass, of a matrix `[n, m]`.
pub(super) struct Support {
    rows: Vec<usize>,
    columns: Vec<usize>,
    n: usize,
    m: usize,
}

impl Support {
    /// Where the masses are above 0.
    pub(super) fn new(a: &[f64], b: &[f64]) -> Self {
        let above_0 = |masses: &[f64]| (0..masses.len()).filter(|&i| masses[i] > 0.0).collect();
        Self {
            rows: above_0(a),
            columns: above_0(b),
            n: a.len(),
            m: b.len(),
        }
    }

    /// `(n, m)`.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.n, self.m)
    }

    /// How many rows and columns carry mass.
    pub(super) fn inner_size(&self) -> (usize, usize) {
        (self.rows.len(), self.columns.len())
    }

    /// Where entry (i, j) of the whole lies in what is left, if it does.
    pub(super) fn inner_entry(&self, i: usize, j: usize) -> Option<(usize, usize)> {
        let row = self.rows.binary_search(&i).ok()?;
        Some((row, self.columns.binary_search(&j).ok()?))
    }

    fn is_whole(&self) -> bool {
        self.inner_size() == self.size()
    }

    /// What is left of a matrix `[n, m]`.
    pub(super) fn shrink<'a>(&self, whole: &'a [f32]) -> Cow<'a, [f32]> {
        if self.is_whole() {
            return Cow::Borrowed(whole);
        }
        let row = |&i: &usize| self.columns.iter().map(move |&j| whole[i * self.m + j]);
        Cow::Owned(self.rows.iter().flat_map(row).collect())
    }

    /// The matrix `[n, m]` of which this is left, 0 elsewhere.
    pub(super) fn spread(&self, inner: Vec<f32>) -> Vec<f32> {
        if self.is_whole() {
            return inner;
        }
        let mut whole = vec![0.0; self.n * self.m];
        for (&i, row) in self.rows.iter().zip(inner.chunks(self.columns.len())) {
            for (&j, &entry) in self.columns.iter().zip(row) {
                whole[i * self.m + j] = entry;
            }
        }
        whole
    }

    /// The masses above 0 of the rows, of sum 1 exactly.
    pub(super) fn row_masses(&self, a: &[f64]) -> Vec<f64> {
        normalized(&self.rows, a)
    }

    /// The same of the columns.
    pub(super) fn column_masses(&self, b: &[f64]) -> Vec<f64> {
        normalized(&self.columns, b)
    }
}

/// Equal masses stay as they are: they are what 1/n rounds to.
fn normalized(kept: &[usize], masses: &[f64]) -> Vec<f64> {
    let even = 1.0 / kept.len() as f64;
    if kept.iter().all(|&i| masses[i] == even) {
        return vec![even; kept.len()];
    }
    let sum: f64 = kept.iter().map(|&i| masses[i]).sum();
    kept.iter().map(|&i| masses[i] / sum).collect()
}
