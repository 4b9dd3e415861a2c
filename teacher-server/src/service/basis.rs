//! Provides GetBasis: the rows of the matrix behind `state`, a chunk at a time.

use std::{ops::Range, sync::Arc};

use distill_proto::v1;

use super::{Messages, Source, messages};
use crate::{Error, Result, basis::Basis};

pub(super) fn stream(basis: Arc<Basis>) -> Messages<v1::GetBasisResponse> {
    let chunks = basis.chunks();
    messages(Rows { basis, chunks })
}

struct Rows<I> {
    basis: Arc<Basis>,
    chunks: I,
}

impl<I: Iterator<Item = Range<usize>> + Send + 'static> Source<v1::GetBasisResponse> for Rows<I> {
    async fn next(&mut self) -> Result<Option<v1::GetBasisResponse>> {
        let Some(rows) = self.chunks.next() else {
            return Ok(None);
        };
        let basis = self.basis.clone();
        let (first_row, count) = (number(rows.start)?, number(rows.len())?);
        // Widening a chunk of the head takes milliseconds.
        let values = tokio::task::spawn_blocking(move || basis.bytes(rows));
        let values_f16 = values.await.map_err(|e| Error::Internal(e.to_string()))??;
        Ok(Some(v1::GetBasisResponse {
            rows: count,
            rank: number(self.basis.rank())?,
            first_row,
            values_f16,
        }))
    }
}

/// A number as it is sent.
fn number(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::Internal(format!("the basis has {count} rows")))
}
