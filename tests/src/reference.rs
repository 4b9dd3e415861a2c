//! Provides the slow reference of one training step: dense logits, plain autograd, Sinkhorn as the textbook has it.
//!
//! It shares the decoders with the product and nothing else: teacher and student logits are formed whole, the kept
//! entries are found by a full sort, and candle differentiates CE, KL and transport written out as their formulas.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::log_softmax;
use distill_model::Decoder;
use distill_text::Sequence;
use student_trainer::loss::{AlignConfig, Cost, LossConfig, Similarity};

/// The loss of one step and the gradient of every parameter.
pub struct Step {
    /// `ce_weight CE + kl_weight KL + ot_weight OT`.
    pub total: f64,
    /// Cross-entropy.
    pub ce: f64,
    /// tau^2 KL(teacher || student) over kept entries and one tail bucket.
    pub kl: f64,
    /// Entropic transport, position prior included.
    pub ot: f64,
    /// By parameter name.
    pub gradients: BTreeMap<String, Tensor>,
}

/// Loss and gradients of one sequence.
///
/// # Errors
/// Settings that this reference does not write out, and whatever candle refuses.
pub fn step(
    teacher: &Decoder,
    student: &Decoder,
    sequence: &Sequence,
    vocab_size: usize,
    top_k: usize,
    loss: &LossConfig,
) -> Result<Step> {
    let ids = Tensor::new(sequence.token_ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
    let targets: Vec<usize> = (0..sequence.token_ids.len())
        .filter(|&t| sequence.target_mask[t])
        .collect();
    let labels: Vec<u32> = targets.iter().map(|&t| sequence.token_ids[t]).collect();
    // The output at t - 1 is what was said about token t.
    let outputs: Vec<u32> = targets.iter().map(|&t| t as u32 - 1).collect();
    let outputs = Tensor::new(outputs.as_slice(), &Device::Cpu)?;
    let logits = |decoder: &Decoder, hidden: Tensor| -> Result<Tensor> {
        let head = decoder.head()?.narrow(0, 0, vocab_size)?;
        Ok(hidden
            .squeeze(0)?
            .index_select(&outputs, 0)?
            .matmul(&head.t()?)?)
    };
    let y = logits(teacher, teacher.hidden_states(&ids)?)?;
    let x = logits(student, student.forward_graph(&ids)?)?;

    let log_q = log_softmax(&x, D::Minus1)?;
    let labels = Tensor::new(labels.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
    let ce = log_q.gather(&labels, 1)?.mean_all()?.neg()?;
    let kept = kept_mask(&y, top_k)?;
    let kl = tail_bucket_kl(&y, &x, &kept, loss.kl_temperature)?;
    let ot = transport(&y, &x, &kept, &loss.align)?;
    let total = ((&ce * loss.ce_weight)? + ((&kl * loss.kl_weight)? + (&ot * loss.ot_weight)?)?)?;
    let store = total.backward()?;
    let gradients = student.parameters().into_iter().map(|(name, var)| {
        let gradient = store.get(var.as_tensor()).cloned();
        Ok((name, gradient.map_or_else(|| var.zeros_like(), Ok)?))
    });
    let gradients = gradients.collect::<Result<_>>()?;
    let scalar = |tensor: &Tensor| -> Result<f64> { Ok(f64::from(tensor.to_scalar::<f32>()?)) };
    Ok(Step {
        total: scalar(&total)?,
        ce: scalar(&ce)?,
        kl: scalar(&kl)?,
        ot: scalar(&ot)?,
        gradients,
    })
}

/// 1 where a logit is among the row's K largest: `[N, V]`.
fn kept_mask(y: &Tensor, top_k: usize) -> Result<Tensor> {
    let vocab_size = y.dim(1)?;
    let mut mask = vec![0f32; y.elem_count()];
    for (row, logits) in y.to_vec2::<f32>()?.iter().enumerate() {
        let mut order: Vec<usize> = (0..vocab_size).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order
            .iter()
            .take(top_k)
            .for_each(|&id| mask[row * vocab_size + id] = 1.0);
    }
    Ok(Tensor::from_vec(mask, y.dims(), &Device::Cpu)?)
}

/// `tau^2 mean_rows [sum_kept p (log p - log q) + P (log P - log Q)]`, P and Q the mass beyond the kept entries.
fn tail_bucket_kl(y: &Tensor, x: &Tensor, kept: &Tensor, tau: f64) -> Result<Tensor> {
    let log_p = log_softmax(&(y / tau)?, D::Minus1)?;
    let log_q = log_softmax(&(x / tau)?, D::Minus1)?;
    let head = (log_p.exp()? * kept)?.mul(&(&log_p - &log_q)?)?.sum(1)?;
    let everything_kept = kept.min_all()?.to_scalar::<f32>()? == 1.0;
    let rows = if everything_kept {
        head
    } else {
        let beyond = (1.0 - kept)?;
        let tail = |log: &Tensor| -> Result<Tensor> { Ok((log.exp()? * &beyond)?.sum(1)?) };
        let (p, q) = (tail(&log_p)?, tail(&log_q)?);
        (head + (&p * (p.log()? - q.log()?)?)?)?
    };
    Ok((rows.mean_all()? * (tau * tau))?)
}

/// `<T, C + prior> - epsilon H(T)` at its minimum over T; T is a constant for the gradient (envelope theorem).
fn transport(y: &Tensor, x: &Tensor, kept: &Tensor, config: &AlignConfig) -> Result<Tensor> {
    ensure!(
        config.block_size == 0,
        "the reference writes out one problem of all positions only"
    );
    let cost = match (config.cost, config.similarity) {
        (Cost::Kl, _) => kl_cost(y, x, kept)?.affine(1.0 / config.kappa, 0.0)?,
        (Cost::SoftmaxSimilarity, Similarity::Cosine) => {
            let similarity = unit_rows(x)?.matmul(&unit_rows(y)?.t()?)?;
            let scaled = (similarity / config.temperature)?;
            log_softmax(&scaled, D::Minus1)?.exp()?.affine(-1.0, 1.0)?
        }
        (cost, similarity) => {
            anyhow::bail!("the reference does not write out {cost:?} {similarity:?}")
        }
    };
    let (n, m) = cost.dims2()?;
    let prior = |i: usize, j: usize| {
        let gap = i as f64 / n as f64 - j as f64 / m as f64;
        config.position(false) * gap * gap
    };
    let values = cost.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let full: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..m).map(|j| values[i][j] + prior(i, j)).collect())
        .collect();
    let plan = sinkhorn(&full, config.epsilon());
    let constant: f64 = (0..n)
        .flat_map(|i| (0..m).map(move |j| (i, j)))
        .map(|(i, j)| plan[i][j] * (prior(i, j) + config.epsilon() * plan[i][j].max(1e-300).ln()))
        .sum();
    let plan: Vec<f32> = plan.into_iter().flatten().map(|mass| mass as f32).collect();
    let plan = Tensor::from_vec(plan, (n, m), &Device::Cpu)?;
    Ok(((plan * cost)?.sum_all()? + constant)?)
}

/// `C_ij = KL(p_j || q_i)`, p_j renormalised to its kept entries: `[N, M]`.
fn kl_cost(y: &Tensor, x: &Tensor, kept: &Tensor) -> Result<Tensor> {
    let log_p = log_softmax(y, D::Minus1)?;
    let mass = (log_p.exp()? * kept)?.sum_keepdim(1)?;
    let p = (log_p.exp()? * kept)?.broadcast_div(&mass)?;
    let log_p = log_p.broadcast_sub(&mass.log()?)?;
    let negative_entropy = (&p * log_p)?.sum(1)?.unsqueeze(0)?;
    let cross = log_softmax(x, D::Minus1)?.matmul(&p.t()?)?;
    Ok(cross.neg()?.broadcast_add(&negative_entropy)?)
}

/// Rows with their mean taken off, at length 1.
fn unit_rows(logits: &Tensor) -> Result<Tensor> {
    let centred = logits.broadcast_sub(&logits.mean_keepdim(1)?)?;
    let norm = centred.sqr()?.sum_keepdim(1)?.sqrt()?;
    Ok(centred.broadcast_div(&norm)?)
}

/// The plan of least `<T,C> - epsilon H(T)` with uniform marginals, by Sinkhorn's iteration on potentials.
fn sinkhorn(cost: &[Vec<f64>], epsilon: f64) -> Vec<Vec<f64>> {
    let (n, m) = (cost.len(), cost[0].len());
    let (log_a, log_b) = (-(n as f64).ln(), -(m as f64).ln());
    let mut f = vec![0.0; n];
    let mut g = vec![0.0; m];
    let soft_min = |terms: &mut dyn Iterator<Item = f64>| {
        let terms: Vec<f64> = terms.map(|term| term / epsilon).collect();
        let max = terms.iter().copied().fold(f64::MIN, f64::max);
        max + terms
            .iter()
            .map(|term| (term - max).exp())
            .sum::<f64>()
            .ln()
    };
    for _ in 0..20_000 {
        for i in 0..n {
            f[i] = epsilon * (log_a - soft_min(&mut (0..m).map(|j| g[j] - cost[i][j])));
        }
        let mut moved = 0f64;
        for j in 0..m {
            let next = epsilon * (log_b - soft_min(&mut (0..n).map(|i| f[i] - cost[i][j])));
            moved = moved.max((next - g[j]).abs());
            g[j] = next;
        }
        if moved < 1e-12 {
            break;
        }
    }
    let mass = |i: usize, j: usize| ((f[i] + g[j] - cost[i][j]) / epsilon).exp();
    (0..n)
        .map(|i| (0..m).map(|j| mass(i, j)).collect())
        .collect()
}
