//! Provides products with the teacher's kept entries as a sparse matrix A `[M, V]` of K entries a row.

/// `out_j = sum_v A_jv row_v`.
pub(crate) fn dots(row: &[f32], ids: &[u32], values: &[f32], k: usize, out: &mut [f32]) {
    for ((out, ids), values) in out.iter_mut().zip(ids.chunks(k)).zip(values.chunks(k)) {
        let terms = ids.iter().zip(values);
        *out = terms.map(|(&id, value)| row[id as usize] * value).sum();
    }
}

/// `row_v += sum_j factor_j A_jv`.
pub(crate) fn add(row: &mut [f32], ids: &[u32], values: &[f32], k: usize, factors: &[f32]) {
    for ((factor, ids), values) in factors.iter().zip(ids.chunks(k)).zip(values.chunks(k)) {
        for (&id, value) in ids.iter().zip(values) {
            row[id as usize] += factor * value;
        }
    }
}
