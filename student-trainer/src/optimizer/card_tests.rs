//! Updates by the kernels against those of the host, to the bit.

use std::collections::BTreeMap;

use candle_core::Device;
use distill_kernels::{Emulator, UPDATE};

use super::*;
use crate::optimizer::{AdamWConfig, moments::Moments};

const CONFIG: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
};

const EMULATED: Change =
    |changed, inputs, calls| Emulator::of(&UPDATE)?.change(changed, inputs, calls);

/// Numbers of many sizes and both signs; of a block, all zero.
fn numbers(count: usize, seed: f32) -> Vec<f32> {
    let value = |i: usize| match i / BLOCK {
        1 => 0.0,
        _ => (i as f32 * 0.7 + seed).sin() * 10f32.powi(i as i32 % 9 - 6),
    };
    (0..count).map(value).collect()
}

fn row(values: Vec<f32>) -> Tensor {
    let count = values.len();
    Tensor::from_vec(values, (1, count), &Device::Cpu).unwrap()
}

/// Of which NaN a number is one device says this and another that.
fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let of = |value: f32| if value.is_nan() { f32::NAN } else { value };
    let values = values.into_iter();
    values.map(|value| of(value).to_bits()).collect()
}

fn state(moments: &Moments, parameter: &Var) -> Vec<(String, Vec<u32>)> {
    let mut state = BTreeMap::new();
    moments.save("p", parameter, &mut state).unwrap();
    let whole =
        |(name, tensor): (String, Tensor)| (name, bits(&tensor.to_dtype(DType::F32).unwrap()));
    state.into_iter().map(whole).collect()
}

/// A parameter's length, and whether its moments are in 8 bits.
type Kind = (usize, bool);

fn parameters(kinds: &[Kind]) -> Vec<Var> {
    let var = |&(count, _): &Kind| Var::from_tensor(&row(numbers(count, 0.0))).unwrap();
    kinds.iter().map(var).collect()
}

/// One update of all; by turns, parameters learn at another rate and do not decay.
fn update(vars: &[Var], moments: &mut [Moments], t: usize, gradients: &[Tensor]) {
    let mut queued = Queue::default();
    let slots = vars.iter().zip(moments).zip(gradients).enumerate();
    for (i, ((var, moments), gradient)) in slots {
        let rate = 0.01 / t as f64 * [1.0, 16.0][i / 2 % 2];
        let step = Step::new(&CONFIG, t, rate, [0.1, 0.0][i / 4 % 2], 0.37);
        moments.update(var, gradient, &step, &mut queued).unwrap();
    }
    CardUpdates::by(EMULATED).run(&queued).unwrap();
}

/// Some updates on the host and by the kernels, from the same start.
fn assert_same_bits(kinds: &[Kind], gradient: impl Fn(usize, usize) -> Vec<f32>) {
    let (here, there) = (parameters(kinds), parameters(kinds));
    let host = here
        .iter()
        .zip(kinds)
        .map(|(var, kind)| Moments::new(var, kind.1).unwrap());
    let card = |(var, kind): (&Var, &Kind)| Moments::Card(CardMoments::new(var, kind.1).unwrap());
    let card = there.iter().zip(kinds).map(card);
    let (mut host, mut card): (Vec<_>, Vec<_>) = (host.collect(), card.collect());
    for t in 1..=4 {
        let gradients: Vec<_> = kinds.iter().map(|kind| row(gradient(kind.0, t))).collect();
        update(&here, &mut host, t, &gradients);
        update(&there, &mut card, t, &gradients);
        for (i, kind) in kinds.iter().enumerate() {
            assert_eq!(host[i].bytes(), card[i].bytes());
            assert_eq!(bits(&here[i]), bits(&there[i]), "{kind:?}, step {t}");
            let states = [(&host[i], &here[i]), (&card[i], &there[i])];
            let [host, card] = states.map(|(moments, var)| state(moments, var));
            assert_eq!(host, card, "{kind:?}, step {t}");
        }
    }
}

#[test]
fn the_card_updates_to_the_bits_of_the_host() {
    // Nothing; one element; a block less one, one, and more; some blocks with a rest; more than all threads take at once.
    let lens = [0, 1, 255, 256, 257, 2_500, 100_003];
    for kinds in [&[true, false][..], &[true], &[false]] {
        let kinds = lens
            .into_iter()
            .flat_map(|len| kinds.iter().map(move |in_8_bits| (len, *in_8_bits)));
        let kinds: Vec<Kind> = kinds.collect();
        assert_same_bits(&kinds, |count, t| numbers(count, t as f32));
    }
    assert_same_bits(&[(0, true), (0, false)], |_, _| Vec::new());
    assert_same_bits(&[], |_, _| Vec::new());
}

#[test]
fn a_nan_gradient_spoils_its_own_element_alone() {
    let kinds = [(1, false), (600, true), (600, false), (1, true)];
    assert_same_bits(&kinds, |count, t| {
        let mut gradient = numbers(count, t as f32);
        gradient[count / 2] = [f32::NAN, f32::INFINITY][t % 2];
        gradient
    });
}

#[test]
fn squares_that_overflow_leave_the_same_bits_behind() {
    // Beyond the root of f32's largest number: a scale of infinity, and NaN from then on.
    let mut large = numbers(600, 1.0);
    large[3] = 3e38;
    large[300] = -1e-42;
    assert_same_bits(&[(600, true)], |_, _| large.clone());
}

#[test]
fn the_update_of_many_parameters_is_a_launch_for_each_kind() {
    // Of the reference student: two matrices for each of seven linears in 28 layers.
    for (in_8_bits, ratios, launches) in [
        (&[false][..], &[1.0][..], 1),
        (&[true, false], &[1.0], 2),
        (&[true, false], &[1.0, 16.0], 4),
    ] {
        let kinds: Vec<Kind> = (0..392)
            .map(|i| (300 + i, in_8_bits[i % in_8_bits.len()]))
            .collect();
        let vars = parameters(&kinds);
        let moments = vars
            .iter()
            .zip(&kinds)
            .map(|(var, kind)| CardMoments::new(var, kind.1).unwrap());
        let moments: Vec<_> = moments.collect();
        let mut queued = Queue::default();
        for (i, (var, moments)) in vars.iter().zip(&moments).enumerate() {
            let rate = 0.01 * ratios[i / 2 % ratios.len()];
            let step = Step::new(&CONFIG, 1, rate, 0.1, 1.0);
            queued
                .push(var, &var.zeros_like().unwrap(), moments, &step)
                .unwrap();
        }
        let changed = moments.iter().map(|moments| 1 + moments.all().len()).sum();
        let (changed, inputs): (Vec<_>, Vec<_>) = ((0..changed).collect(), (0..393).collect());
        assert_eq!(calls(&queued.0, &changed, &inputs).unwrap().len(), launches);
    }
}

#[test]
fn a_gradient_of_another_size_is_refused() {
    let var = Var::from_tensor(&row(numbers(9, 0.0))).unwrap();
    let moments = CardMoments::new(&var, false).unwrap();
    let step = Step::new(&CONFIG, 1, 0.01, 0.1, 1.0);
    let mut queued = Queue::default();
    for count in [8, 10] {
        let gradient = row(numbers(count, 0.0));
        let error = queued.push(&var, &gradient, &moments, &step).unwrap_err();
        assert!(error.to_string().contains("[1, 9]"), "{error}");
    }
}

#[test]
fn a_state_goes_from_the_host_to_the_card_and_back() {
    for in_8_bits in [false, true] {
        let kinds = [(700, in_8_bits)];
        let vars = [parameters(&kinds), parameters(&kinds)];
        let mut host = [Moments::new(&vars[0][0], in_8_bits).unwrap()];
        let gradient = [row(numbers(700, 1.0))];
        update(&vars[0], &mut host, 1, &gradient);
        let mut saved = BTreeMap::new();
        host[0].save("p", &vars[0][0], &mut saved).unwrap();
        let empty = CardMoments::new(&vars[1][0], in_8_bits).unwrap();
        let card = Moments::Card(empty).load("p", &vars[1][0], &saved).unwrap();
        assert_eq!(state(&host[0], &vars[0][0]), state(&card, &vars[1][0]));
        // What was loaded from is not what changes from now on.
        let mut card = [card];
        update(&vars[1], &mut card, 2, &gradient);
        let again = host[0].load("p", &vars[0][0], &saved).unwrap();
        assert_eq!(state(&host[0], &vars[0][0]), state(&again, &vars[0][0]));
        saved.remove("p.exp_avg_sq");
        let error = card[0].load("p", &vars[1][0], &saved).err().unwrap();
        assert!(error.to_string().contains("p.exp_avg_sq"), "{error}");
    }
}
