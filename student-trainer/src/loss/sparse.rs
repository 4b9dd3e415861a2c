//! Provides products with the teacher's kept entries as a sparse matrix A `[M, V]`, row j from `starts[j]` to
//! `starts[j + 1]`.

/// `out_j = sum_v A_jv row_v`.
pub(crate) fn dots(row: &[f32], ids: &[u32], values: &[f32], starts: &[usize], out: &mut [f32]) {
    for (out, bounds) in out.iter_mut().zip(starts.windows(2)) {
        let entries = bounds[0]..bounds[1];
        let terms = ids[entries.clone()].iter().zip(&values[entries]);
        *out = terms.map(|(&id, value)| row[id as usize] * value).sum();
    }
}

/// `row_v += sum_j factor_j A_jv`.
pub(crate) fn add(row: &mut [f32], ids: &[u32], values: &[f32], starts: &[usize], factors: &[f32]) {
    for (factor, bounds) in factors.iter().zip(starts.windows(2)) {
        let entries = bounds[0]..bounds[1];
        for (&id, value) in ids[entries.clone()].iter().zip(&values[entries]) {
            row[id as usize] += factor * value;
        }
    }
}
