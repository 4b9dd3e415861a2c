//! Cross-entropy of a pair: its mean is over the rows with a label, and the others have no gradient of it.

use candle_core::Tensor;

use super::testing::{Case, SQUARE, tensor, widened};
use super::*;

#[test]
fn rows_without_a_label_have_no_part_in_cross_entropy() {
    let case = Case::new(SQUARE, 5);
    let (hidden, geometry) = (tensor(&case.hidden), case.geometry());
    let config = LossConfig {
        kl_weight: 0.0,
        ..LossConfig::default()
    };
    let labelled = vec![true, false, true, false, true];
    let mut targets = case.targets.clone();
    targets.alignment = Some(Alignment {
        pairs: (0..SQUARE.n).map(Some).collect(),
        student_places: vec![0.0; SQUARE.n],
        teacher_places: vec![0.0; SQUARE.m],
        labelled: labelled.clone(),
        ..Alignment::default()
    });
    let loss = |hidden: &Tensor, labels: &[u32], targets: &Targets| {
        head_loss(hidden, labels, targets, &geometry, &config).unwrap()
    };
    let whole = loss(&hidden, &case.labels, &targets);
    let gradient = widened(&whole.grad_hidden);
    let (d, mut sum) = (SQUARE.d, 0.0);
    for (i, &is_labelled) in labelled.iter().enumerate() {
        let row = &gradient[i * d..(i + 1) * d];
        if !is_labelled {
            assert!(row.iter().all(|&g| g == 0.0), "{row:?}");
            continue;
        }
        let own = hidden.narrow(0, i, 1).unwrap();
        let (alone, to_hidden) = {
            let label = &case.labels[i..=i];
            let (loss, _) = head_loss_with_head(&own, label, None, &geometry, &config).unwrap();
            (loss.values.ce, widened(&loss.grad_hidden))
        };
        sum += alone / 3.0;
        for (a, b) in row.iter().zip(to_hidden) {
            assert!((a - b / 3.0).abs() < 1e-6, "{a} {b}");
        }
    }
    assert!(
        (whole.values.ce - sum).abs() < 1e-6,
        "{} {sum}",
        whole.values.ce
    );
    // Of another length it speaks of other rows.
    targets.alignment.as_mut().unwrap().labelled.pop();
    let refused = head_loss(&hidden, &case.labels, &targets, &geometry, &config);
    assert!(refused.unwrap_err().to_string().contains("alignment"));
}
