//! Provides the matrix behind `state`, fetched once: `Y - mean(Y) = B c`.

use candle_core::{Device, Tensor};
use distill_proto::v1::GetBasisRequest;
use half::f16;

use super::{
    ServerInfo, Teacher,
    connect::{SILENCE_MAX, within},
};
use crate::{Error, Result};

/// Fetches B. None where the teacher sends no `state`, or one that has no basis.
///
/// # Shapes
/// `[V, r]` f16 on the CPU, as it comes: 1.1 GB for a 7B teacher's hidden states, and needed only until the loss has
/// made its small matrices of it. V is the effective vocabulary, r the rank of `state`.
///
/// # Errors
/// A lost connection, or rows that do not fit the handshake.
pub async fn fetch_basis(teacher: &Teacher, info: &ServerInfo) -> Result<Option<Tensor>> {
    let Some((_, rank)) = info.state.filter(|(kind, _)| kind.has_basis()) else {
        return Ok(None);
    };
    let (rows, rank) = (info.vocab_size as usize, rank as usize);
    let request = GetBasisRequest {
        plan_fingerprint: info.plan.to_hex(),
    };
    let mut service = teacher.service();
    let answer = within(SILENCE_MAX, service.get_basis(request)).await;
    let mut stream = teacher.answer("GetBasis", answer)?;
    // It grows with what has arrived: the handshake alone must not take memory.
    let mut values: Vec<f16> = Vec::new();
    while let Some(chunk) = teacher.next(&mut stream, "GetBasis").await? {
        let row_bytes = rank * size_of::<f16>();
        let next_row = values.len() / rank;
        let whole = chunk.values_f16.len() == chunk.rows as usize * row_bytes;
        let fits = (1..=rows - next_row).contains(&(chunk.rows as usize));
        if chunk.rank as usize != rank || chunk.first_row as usize != next_row || !whole || !fits {
            return Err(Error::Stream(format!(
                "GetBasis: expected rows of [{rows}, {rank}] from row {next_row}, got {} bytes for {} rows of rank {} from row {}",
                chunk.values_f16.len(),
                chunk.rows,
                chunk.rank,
                chunk.first_row
            )));
        }
        let halves = chunk.values_f16.chunks_exact(2);
        values
            .try_reserve(halves.len())
            .map_err(|e| Error::Stream(format!("GetBasis: no memory for [{rows}, {rank}]: {e}")))?;
        values.extend(halves.map(|pair| f16::from_le_bytes([pair[0], pair[1]])));
    }
    if values.len() != rows * rank {
        return Err(Error::Stream(format!(
            "GetBasis ended after {} of {rows} rows",
            values.len() / rank
        )));
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::Stream(
            "GetBasis: the basis holds NaN or infinity".into(),
        ));
    }
    Ok(Some(Tensor::from_vec(values, (rows, rank), &Device::Cpu)?))
}

#[cfg(test)]
mod tests {
    use super::{super::mock::MockTeacher, *};
    use crate::shutdown::Shutdown;

    #[tokio::test]
    async fn rows_arrive_in_chunks_and_become_one_matrix() {
        let mock = MockTeacher::start(1).await;
        let teacher = Teacher::connect(&mock.connect_options(), &Shutdown::default())
            .await
            .unwrap();
        let info = teacher.info().await.unwrap();
        let basis = fetch_basis(&teacher, &info).await.unwrap().unwrap();
        assert_eq!(basis.dims(), [info.vocab_size as usize, 3]);
        let values = basis
            .to_dtype(candle_core::DType::F32)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(i, &value)| value == i as f32)
        );

        let mut wrong = info.clone();
        wrong.vocab_size += 1;
        let message = fetch_basis(&teacher, &wrong).await.unwrap_err().to_string();
        assert!(message.contains("GetBasis"), "{message}");
    }
}
