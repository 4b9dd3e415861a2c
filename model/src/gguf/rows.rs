/*! Provides the order in which llama.cpp stores the rows of Llama's q and k.

Its rotation takes neighbours where Hugging Face's takes one value from each half of a head, so rows (i, i + half) of a head are
stored as (2i, 2i + 1). Files are read and written by this one rule.
*/

use super::is_llama;
use crate::ModelConfig;

/// Heads of the tensor that Hugging Face calls `name`, where its rows are stored as pairs.
pub(super) fn paired_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    let llama = is_llama(config);
    let queries = name.contains(".q_proj.");
    let keys = name.contains(".k_proj.");
    match (llama, queries, keys) {
        (true, true, _) => Some(config.num_attention_heads),
        (true, _, true) => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Where row `row` of so many heads' `rows` is stored.
pub(super) fn stored_row(row: usize, rows: usize, heads: usize) -> usize {
    let in_head = rows / heads;
    let half = in_head / 2;
    let (head, row) = (row / in_head, row % in_head);
    let paired = if row < half {
        2 * row
    } else {
        2 * (row - half) + 1
    };
    head * in_head + paired
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_head_lie_side_by_side() {
        let stored: Vec<usize> = (0..12).map(|row| stored_row(row, 12, 2)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
