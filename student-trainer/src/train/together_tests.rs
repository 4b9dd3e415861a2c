use super::*;
use crate::ranks::{Alone, threads};

fn loss(rank: usize) -> StepLoss {
    StepLoss {
        total: 0.1 * rank as f64,
        ce: 1.0,
        tokens: 9,
        targets: 7,
        padding: rank,
        solver: (rank == 1).then_some((
            Convergence {
                iterations: 3,
                converged: false,
                ..Convergence::default()
            },
            true,
        )),
        ..StepLoss::default()
    }
}

fn parameters() -> Vec<(String, Var)> {
    let var = |name: &str, length: usize| {
        let zeros = Tensor::zeros(length, candle_core::DType::F32, &candle_core::Device::Cpu);
        (name.to_owned(), Var::from_tensor(&zeros.unwrap()).unwrap())
    };
    vec![var("a", 2), var("b", 3), var("nobody's", 1)]
}

#[test]
fn a_step_s_sums_are_the_same_in_all_ranks_though_one_has_no_pass() {
    let found = threads::run(3, |ranks| {
        let mut gradients = Gradients::new();
        let tensor = |values: &[f32]| Tensor::new(values, &candle_core::Device::Cpu).unwrap();
        if ranks.rank() != 1 {
            gradients.add("a", &tensor(&[1.0, 2.0])).unwrap();
        }
        if ranks.rank() == 2 {
            gradients.add("b", &tensor(&[5.0, 6.0, 7.0])).unwrap();
        }
        let (sum, gradients) =
            add_up(ranks, &parameters(), &loss(ranks.rank()), gradients).unwrap();
        let list: Vec<(String, Vec<f32>)> = gradients
            .iter()
            .map(|(name, one)| (name.to_owned(), one.to_vec1().unwrap()))
            .collect();
        (sum, list)
    });
    for (sum, list) in &found {
        assert_eq!(sum, &found[0].0);
        assert_eq!((sum.tokens, sum.targets, sum.padding), (27, 21, 3));
        assert_eq!((sum.total, sum.ce), (0.1 + 0.2, 3.0));
        let (solver, uninformative) = sum.solver.unwrap();
        assert!(solver.iterations == 3 && !solver.converged && uninformative);
        let expected = [
            ("a".to_owned(), vec![2.0, 4.0]),
            ("b".to_owned(), vec![5.0, 6.0, 7.0]),
        ];
        assert_eq!(list, &expected);
    }
}

#[test]
fn a_loss_that_is_not_finite_in_one_rank_is_not_in_any() {
    let found = threads::run(2, |ranks| {
        let mut own = loss(0);
        if !ranks.is_first() {
            own.total = f64::NAN;
        }
        let (sum, _) = add_up(ranks, &parameters(), &own, Gradients::new()).unwrap();
        sum.not_finite()
    });
    assert_eq!(found, [Some("the loss"); 2]);
}

#[test]
fn ranks_that_train_other_students_are_told_apart() {
    let found = threads::run(3, |ranks| {
        let parameters = parameters();
        check_same(ranks, 4, &parameters).unwrap();
        if ranks.rank() == 2 {
            let other = Tensor::new(&[0f32, f32::MIN_POSITIVE], &candle_core::Device::Cpu);
            parameters[0].1.set(&other.unwrap()).unwrap();
        }
        check_same(ranks, 4, &parameters).unwrap_err().to_string()
    });
    for message in found {
        assert!(
            message.contains("after step 4 rank 2 has other parameters"),
            "{message}"
        );
    }
}

#[test]
fn all_hear_what_the_first_has_evaluated() {
    let found = threads::run(2, |ranks| {
        let mut evals = EvalState::default();
        if ranks.is_first() {
            evals = EvalState {
                evaluated: 8,
                without_best: 2,
                best: Some(Best {
                    step: 4,
                    value: 0.25,
                }),
            };
        }
        (hear_first(ranks, &mut evals, ranks.is_first()), evals)
    });
    assert_eq!(found[0], found[1]);
    assert!(found[1].0 && found[1].1.without_best == 2);
}

#[test]
fn fewer_passes_than_ranks_are_refused_with_what_to_do() {
    let config = TrainConfig {
        grad_accumulation: 2,
        ..TrainConfig::default()
    };
    check_config(&config, &Alone).unwrap();
    let found = threads::run(3, |ranks| {
        check_config(&config, ranks).unwrap_err().to_string()
    });
    for message in found {
        for part in [
            "grad_accumulation: ",
            "3 ranks",
            "start 2",
            "--grad-accumulation 3",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn a_control_that_needs_every_sequence_is_refused() {
    let config = TrainConfig {
        grad_accumulation: 2,
        shuffle_teacher: ShuffleTeacher::Rows,
        ..TrainConfig::default()
    };
    check_config(&config, &Alone).unwrap();
    for refused in threads::run(2, |ranks| check_config(&config, ranks)) {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("shuffle_teacher: "), "{message}");
    }
}

#[test]
fn a_step_s_counts_are_over_all_ranks() {
    let found = threads::run(3, |ranks| {
        let own = Counts {
            frames: 2,
            examples: ranks.rank(),
            targets: 10 * ranks.rank(),
        };
        (own.of_all(ranks), own.of_all(&Alone) == own)
    });
    let all = Counts {
        frames: 6,
        examples: 3,
        targets: 30,
    };
    assert_eq!(found, [(all, true); 3]);
}
