use candle_core::Device;

use super::*;

const CONFIG: OptimizerConfig = OptimizerConfig {
    kind: OptimizerKind::AdamW,
    adamw: AdamWConfig {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-6,
        weight_decay: 0.1,
    },
    ratios: LearningRateRatios {
        lora_b: 1.0,
        embedding: 1.0,
    },
};

/// A matrix of one row: biases, of one dimension, do not decay.
fn var(values: &[f32]) -> Var {
    let row = Tensor::new(values, &Device::Cpu).unwrap();
    Var::from_tensor(&row.unsqueeze(0).unwrap()).unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

fn gradient(step: usize, element: usize) -> f64 {
    ((3 * step + 7 * element) as f64 * 0.37).sin() * 10f64.powi(element as i32 - 1)
}

fn train(optimizer: &mut Optimizer, steps: std::ops::Range<usize>, scale: f64) {
    for step in steps {
        let g: Vec<f32> = (0..3).map(|e| gradient(step, e) as f32).collect();
        let g = Tensor::new(g, &Device::Cpu).unwrap();
        let g = g.unsqueeze(0).unwrap();
        let rate = 0.01 / (1.0 + step as f64);
        optimizer.update(rate, scale, |_| Some(&g)).unwrap();
    }
}

/// The formula element by element in f64.
fn reference(start: [f64; 3], steps: usize, scale: f64) -> [f64; 3] {
    let (mut p, mut m, mut v) = (start, [0f64; 3], [0f64; 3]);
    for step in 0..steps {
        let rate = 0.01 / (1.0 + step as f64);
        let t = step as i32 + 1;
        for e in 0..3 {
            let g = gradient(step, e) * scale;
            m[e] = 0.9 * m[e] + 0.1 * g;
            v[e] = 0.99 * v[e] + 0.01 * g * g;
            let m_hat = m[e] / (1.0 - 0.9f64.powi(t));
            let v_hat = v[e] / (1.0 - 0.99f64.powi(t));
            p[e] -= rate * (m_hat / (v_hat.sqrt() + 1e-6) + 0.1 * p[e]);
        }
    }
    p
}

#[test]
fn agrees_with_the_formula_in_f64() {
    for scale in [1.0, 0.25] {
        let parameter = var(&[1.0, -2.0, 0.5]);
        let mut optimizer = Optimizer::new(vec![("p".into(), parameter.clone())], CONFIG).unwrap();
        train(&mut optimizer, 0..30, scale);
        let expected = reference([1.0, -2.0, 0.5], 30, scale);
        for (got, want) in values(&parameter).iter().zip(expected) {
            // f32 rounding of 30 updates of about 0.01.
            assert!((f64::from(*got) - want).abs() < 2e-6, "{got} {want}");
        }
    }
}

#[test]
fn agrees_with_torch() {
    // torch 2.15: AdamW([1, -2, 0.5], betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1), these gradients and rates.
    let torch = [0.987_328_8, -1.998_093_7, 0.510_083_14];
    let parameter = var(&[1.0, -2.0, 0.5]);
    let mut optimizer = Optimizer::new(vec![("p".into(), parameter.clone())], CONFIG).unwrap();
    train(&mut optimizer, 0..30, 1.0);
    for (got, want) in values(&parameter).iter().zip(torch) {
        // Both round in f32, in another order.
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
}

#[test]
fn a_saved_state_continues_bitwise() {
    let whole = var(&[1.0, -2.0, 0.5]);
    let mut optimizer = Optimizer::new(vec![("p".into(), whole.clone())], CONFIG).unwrap();
    train(&mut optimizer, 0..9, 1.0);

    let half = var(&[1.0, -2.0, 0.5]);
    let mut first = Optimizer::new(vec![("p".into(), half.clone())], CONFIG).unwrap();
    train(&mut first, 0..4, 1.0);
    let mut second = Optimizer::new(vec![("p".into(), half.clone())], CONFIG).unwrap();
    second.load_state(&first.state().unwrap()).unwrap();
    assert_eq!(second.steps(), 4);
    train(&mut second, 4..9, 1.0);
    assert_eq!(values(&half), values(&whole));
}

#[test]
fn only_matrices_decay() {
    let (matrix, bias) = (var(&[1.0]), Var::ones(1, DType::F32, &Device::Cpu).unwrap());
    let parameters = vec![("m".into(), matrix.clone()), ("b".into(), bias.clone())];
    let mut optimizer = Optimizer::new(parameters, CONFIG).unwrap();
    let zeros = [matrix.zeros_like().unwrap(), bias.zeros_like().unwrap()];
    let gradient = |name: &str| Some(&zeros[usize::from(name == "b")]);
    optimizer.update(0.5, 1.0, gradient).unwrap();
    assert_eq!((values(&matrix), values(&bias)), (vec![0.95], vec![1.0]));
}

#[test]
fn a_missing_gradient_is_an_error_not_a_skip() {
    let mut optimizer = Optimizer::new(vec![("some.lora_A".into(), var(&[1.0]))], CONFIG).unwrap();
    let error = optimizer.update(0.1, 1.0, |_| None).unwrap_err();
    assert!(error.to_string().contains("some.lora_A"), "{error}");
}

#[test]
fn a_foreign_state_is_refused_by_name() {
    let mut optimizer = Optimizer::new(vec![("p".into(), var(&[1.0]))], CONFIG).unwrap();
    let error = optimizer.load_state(&BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("p.exp_avg"), "{error}");
    let other = Optimizer::new(vec![("p".into(), var(&[1.0, 2.0]))], CONFIG).unwrap();
    let error = optimizer.load_state(&other.state().unwrap()).unwrap_err();
    assert!(error.to_string().contains("[1, 2]"), "{error}");
}

/// The obvious form, a dozen passes over memory.
fn tensor_operations(
    step: &Step,
    parameter: &Var,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
) -> Result<()> {
    let gradient = (gradient * step.scale)?;
    *first = ((&*first * step.beta1)? + (&gradient * (1.0 - step.beta1))?)?;
    *second = ((&*second * step.beta2)? + (gradient.sqr()? * (1.0 - step.beta2))?)?;
    let root = ((second.sqrt()? / step.correction)? + step.eps)?;
    let change = ((&*first / root)? * step.rate)?;
    let kept = (parameter.as_tensor() * step.kept)?;
    Ok(parameter.set(&(kept - change)?)?)
}

#[test]
fn one_pass_over_slices_gives_what_tensor_operations_give() {
    // More than two chunks, and a rest.
    let count = 70_001;
    let values = |seed: f32| -> Tensor {
        let values: Vec<f32> = (0..count)
            .map(|i| (i as f32 * 0.7 + seed).sin() * 10f32.powi(i % 7 - 4))
            .collect();
        Tensor::new(values, &Device::Cpu).unwrap()
    };
    let start = values(0.0);
    let (by_slices, by_tensors) = (
        Var::from_tensor(&start).unwrap(),
        Var::from_tensor(&start).unwrap(),
    );
    let mut slices = Moments::new(&by_slices, false).unwrap();
    assert!(matches!(slices, Moments::Slices { .. }));
    let zeros = start.zeros_like().unwrap();
    let (mut first, mut second) = (zeros.clone(), zeros);
    for t in 1..=5 {
        let gradient = values(t as f32);
        let step = Step::new(&CONFIG.adamw, t, 0.01, 0.1, 0.5);
        let mut queued = Queue::default();
        slices
            .update(&by_slices, &gradient, &step, &mut queued)
            .unwrap();
        tensor_operations(&step, &by_tensors, &gradient, &mut first, &mut second).unwrap();
    }
    let difference = (by_slices.as_tensor() - by_tensors.as_tensor()).unwrap();
    let largest = difference.abs().unwrap().max_all().unwrap();
    // Five updates of 0.01, each rounded in f32 at magnitudes of up to 100.
    assert!(largest.to_scalar::<f32>().unwrap() < 5e-5, "{largest}");
    let mut state = BTreeMap::new();
    slices.save("p", &by_slices, &mut state).unwrap();
    let saved = state["p.exp_avg_sq"].to_vec1::<f32>().unwrap();
    for (a, b) in saved.iter().zip(second.to_vec1::<f32>().unwrap()) {
        assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
    }
}

#[test]
fn groups_have_their_own_learning_rates() {
    let names = [
        "q_proj.lora_A.weight",
        "q_proj.lora_B.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ];
    let vars: Vec<Var> = names.iter().map(|_| var(&[1.0])).collect();
    let parameters = names
        .iter()
        .map(|name| (*name).to_owned())
        .zip(vars.clone());
    let ratios = LearningRateRatios {
        lora_b: 16.0,
        embedding: 0.5,
    };
    let adamw = AdamWConfig {
        weight_decay: 0.0,
        eps: 1e-30,
        ..CONFIG.adamw
    };
    let config = OptimizerConfig {
        ratios,
        adamw,
        ..CONFIG
    };
    let mut optimizer = Optimizer::new(parameters.collect(), config).unwrap();
    let gradient = Tensor::new(&[[3f32]], &Device::Cpu).unwrap();
    optimizer.update(0.01, 1.0, |_| Some(&gradient)).unwrap();
    // The first update is the learning rate, whatever the gradient's size.
    for (var, ratio) in vars.iter().zip([1.0, 16.0, 0.5, 0.5]) {
        let change = 1.0 - values(var)[0];
        assert!((change - 0.01 * ratio).abs() < 1e-6, "{change} {ratio}");
    }
}
