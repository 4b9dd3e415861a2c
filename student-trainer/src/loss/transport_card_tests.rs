//! Provides the tests of transport on a card, its kernels run by the emulator, against the host's: values, gradients, and what is refused.

use candle_core::{DType, Device, Tensor};

use super::config::{AlignConfig, AlignLoss, Similarity};
use super::targets::Alignment;
use super::testing::{relative, transports, widened};
use super::transport::{Problem, Transport, transport};
use super::transport_card::CardTransport;
use super::transport_kernel_tests::{EMULATED, costs, wide};
use super::{Cost, LossError};

fn card(
    matrix: &Tensor,
    alignment: Option<&Alignment>,
    config: &AlignConfig,
) -> super::Result<Transport> {
    let size = matrix.dims2().unwrap();
    let card = CardTransport::new(size, config, EMULATED).unwrap();
    card.transport(matrix, alignment)
}

/// Values, gradients, row masses and reports of every cost, loss and size of blocks, with positions beside each other and not.
#[test]
fn whole_transports_are_the_host_s() {
    let places = |of: usize| (0..of).map(|k| (k as f64 / of as f64).powi(2)).collect();
    for (n, m) in [(5, 7), (6, 6), (4, 2)] {
        let alignment = Alignment {
            links: vec![(0, 1), (3, 0)],
            equal: vec![(1, 1)],
            pairs: vec![None; n],
            student_places: places(n),
            teacher_places: places(m),
            ..Alignment::default()
        };
        let matrix: Vec<f32> = costs(n, m, 60)[0].clone();
        let same = transports().into_iter().filter(AlignConfig::is_for_a_card);
        let detached = AlignConfig {
            loss: AlignLoss::Detached,
            block_size: 4,
            cost: Cost::SoftmaxSimilarity,
            similarity: Similarity::Cosine,
            position: Some(0.0),
            tolerance: 1e-9,
            ..AlignConfig::default()
        };
        for ot in same.chain([detached]) {
            let ot = AlignConfig {
                links: 0.3,
                bytes: 0.2,
                ..ot
            };
            for alignment in [None, Some(&alignment)] {
                let problem = Problem {
                    solved: matrix.clone(),
                    paid: None,
                    n,
                    m,
                    alignment,
                    masses: None,
                };
                let host = transport(problem, &ot).unwrap();
                let on_card = Tensor::from_slice(&matrix, (n, m), &Device::Cpu).unwrap();
                let found = card(&on_card, alignment, &ot).unwrap();
                // As close as the losses are to other implementations: exponentials in f32 go into the costs.
                let close = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs().max(0.1);
                assert!(
                    close(found.value, host.value),
                    "{} {}: {ot:?}",
                    found.value,
                    host.value
                );
                let (a, b) = (found.report, host.report);
                assert!(
                    close(a.transport_cost, b.transport_cost),
                    "{a:?} {b:?}: {ot:?}"
                );
                assert_eq!(
                    (a.problems, a.convergence.converged, a.uninformative),
                    (b.problems, b.convergence.converged, b.uninformative),
                    "{ot:?}"
                );
                let distance = relative(&found.row_mass, &host.row_mass);
                assert!(distance < 1e-6, "{distance:e}: {ot:?}");
                let gradient = |of: &Transport| {
                    let gradient = of.solved.as_ref().unwrap();
                    let tensor = gradient.tensor(m, 1.0, &Device::Cpu).unwrap();
                    assert_eq!(tensor.dims2().unwrap(), (n, m));
                    widened(&tensor)
                };
                let distance = relative(&gradient(&found), &gradient(&host));
                // f32 exponentials in another order, carried through `sharp`'s equations.
                assert!(distance < 1e-5, "{ot:?}: {distance:e}");
                let rows = found.solved.as_ref().unwrap().rows(0, 1, m).unwrap();
                assert_eq!(wide(&rows), gradient(&found)[..m]);
            }
        }
    }
}

#[test]
fn similarities_that_are_not_finite_are_errors_as_on_the_host() {
    let (n, m) = (6, 5);
    for cost in [Cost::Kl, Cost::SoftmaxSimilarity] {
        for bad in [f32::NAN, f32::INFINITY] {
            let ot = AlignConfig {
                cost,
                ..AlignConfig::default()
            };
            let mut matrix = costs(n, m, 61)[0].clone();
            matrix[4 * m + 1] = bad;
            let matrix = Tensor::from_vec(matrix, (n, m), &Device::Cpu).unwrap();
            let error = card(&matrix, None, &ot).err().unwrap();
            assert!(
                matches!(error, LossError::NonFinite { position: 4, .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn what_a_card_does_badly_is_left_to_the_host() {
    let taken = |n, m, config: &AlignConfig| CardTransport::new((n, m), config, EMULATED).is_some();
    let ot = AlignConfig::default();
    assert!(taken(1024, 1024, &ot) && !taken(1024, 1025, &ot) && !taken(0, 3, &ot));
    let blocks = AlignConfig {
        block_size: 64,
        ..ot.clone()
    };
    assert!(taken(4096, 4000, &blocks));
    let own_cost = AlignConfig {
        cost: Cost::SquaredEuclidean,
        ..ot.clone()
    };
    let tiny = AlignConfig {
        epsilon: 1e-60,
        ..ot
    };
    assert!(!taken(8, 8, &own_cost) && !taken(8, 8, &tiny));
    // On the CPU the host solves.
    let matrix = Tensor::zeros((8, 8), DType::F32, &Device::Cpu).unwrap();
    assert!(CardTransport::of(&matrix, &blocks).is_none());
}
