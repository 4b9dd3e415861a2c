//! Provides one sequence as Python reads it: its text, and its numbers as bytes.

use bytemuck::NoUninit;
use distill_proto::{Frame, Rows, View};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict},
};

/// The fields of the package's `Frame`, whose documentation says what they are. Arrays are flat, and `state` has its rank beside it.
///
/// # Errors
/// What Python says where it has no memory.
pub fn fields<'py>(py: Python<'py>, frame: &Frame) -> PyResult<Bound<'py, PyDict>> {
    let rows = &frame.rows;
    let byte_offsets = frame.byte_offsets.iter();
    let byte_offsets: Vec<u32> = byte_offsets.flat_map(|&(from, to)| [from, to]).collect();
    let (counts, padding) = draws(rows);

    let fields = PyDict::new(py);
    fields.set_item("sequence_id", frame.sequence_id)?;
    fields.set_item("index", frame.index)?;
    fields.set_item("text", &frame.text)?;
    fields.set_item("student_record", frame.view.as_ref().map(record))?;
    fields.set_item("tokens", bytes(py, &frame.token_ids))?;
    fields.set_item("byte_offsets", bytes(py, &byte_offsets))?;
    fields.set_item("target_mask", bytes(py, &frame.target_mask))?;
    fields.set_item("estimator", rows.estimator.name())?;
    fields.set_item("k", rows.k)?;
    fields.set_item("ids", bytes(py, &rows.ids))?;
    fields.set_item("logits", bytes(py, &rows.logits))?;
    fields.set_item("counts", bytes(py, &counts))?;
    fields.set_item("padding", bytes(py, &padding))?;
    fields.set_item("max", bytes(py, &rows.max))?;
    fields.set_item("mean", bytes(py, &rows.mean))?;
    fields.set_item("std", bytes(py, &rows.std))?;
    fields.set_item("temperatures", &rows.temperatures)?;
    fields.set_item("logsumexp", bytes(py, &rows.logsumexp.concat()))?;
    let state = rows.state.as_ref();
    let state = state.map(|state| (bytes(py, &state.values), state.rank));
    fields.set_item("state", state)?;
    Ok(fields)
}

/// Draws of every entry, and whether it only fills its row up.
fn draws(rows: &Rows) -> (Vec<u32>, Vec<bool>) {
    if !rows.estimator.is_drawn() {
        let entries = rows.ids.len();
        return (vec![0; entries], vec![false; entries]);
    }
    let counts = rows.counts.iter();
    let draws = counts.map(|&count| {
        let is_padding = rows.estimator.is_padding(count);
        (if is_padding { 0 } else { count }, is_padding)
    });
    draws.unzip()
}

fn record(view: &View) -> &str {
    &view.record
}

/// Numbers in the machine's order.
fn bytes<'py, T: NoUninit>(py: Python<'py>, numbers: &[T]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, bytemuck::cast_slice(numbers))
}
