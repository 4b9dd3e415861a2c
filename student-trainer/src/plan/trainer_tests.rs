use super::*;
use crate::{
    config::{ComputeDtype, Tune},
    optimizer::OptimizerKind,
};

const ADAPTERS: u64 = 18_464_768;
const EMBEDDING: u64 = 151_936 * 1536;

fn of(config: &PlanConfig) -> Process {
    trainer(&Pair::reference().unwrap(), config).unwrap()
}

fn on_cpu() -> PlanConfig {
    let mut config = PlanConfig::default();
    config.train.device = "cpu".into();
    config
}

#[test]
fn the_reference_student_on_a_card_by_hand() {
    let process = of(&PlanConfig::default());
    // 28 layers of (1536 (3 * 1536 + 2 * 256 - 1536) + 3 * 8960 * 1536) weights in half a byte, with their scales.
    let linears = 28 * (2 * 1536 * 1536 + 2 * 256 * 1536 + 3 * 8960 * 1536);
    let four_bit = linears / 2 + linears / 64 + 4 * linears / 64 / 256;
    let small = 28 * (2 * 1536 + 1536 + 2 * 256) + 1536;
    let expected = [
        ("linears in 4 bits", four_bit),
        ("embeddings, head, norms, biases", 2 * (EMBEDDING + small)),
        ("linears of one product, dequantised", 2 * 2 * 8960 * 1536),
        ("adapters, as products take them", 2 * ADAPTERS),
        ("adapters, f32", 4 * ADAPTERS),
        ("gradients, f32", 4 * ADAPTERS),
        ("AdamW's moments", 8 * ADAPTERS),
        ("norm of one matrix", 0),
        ("kept of the layers for the way back", 28 * 512 * 1536 * 4),
        ("CUDA context", 450 << 20),
        ("transport", 0),
        ("frames, decoded", 0),
    ];
    for (name, bytes) in expected {
        assert_eq!(process.bytes_of(name), bytes, "{name}");
    }
}

#[test]
fn the_cpu_holds_half_precision_as_f32_and_nothing_of_the_file() {
    let process = of(&on_cpu());
    let small = 28 * (2 * 1536 + 1536 + 2 * 256) + 1536;
    let dense = process.bytes_of("embeddings, head, norms, biases");
    assert_eq!(dense, 4 * (EMBEDDING + small));
    // The student is stored in four bits, so nothing is quantised.
    assert_eq!(process.bytes_of("one matrix, while it is quantised"), 0);
    // Eight frames ahead and one step's twice; 24 entries of 12 bytes and 100 for a token.
    assert_eq!(
        process.bytes_of("frames, decoded"),
        10 * 512 * (24 * 12 + 100)
    );
    assert_eq!(process.bytes_of("linears of one product, dequantised"), 0);
}

#[test]
fn checkpoints_trade_kept_inputs_for_pieces() {
    let parts = |checkpointing: bool, every: usize| {
        let mut config = on_cpu();
        config.train.checkpointing = checkpointing;
        config.train.checkpoint_every = every;
        let process = of(&config);
        let kept = process.bytes_of("kept of the layers for the way back");
        (
            kept,
            process.bytes_of("one piece of layers, on the way back"),
        )
    };
    let input = 512 * 1536 * 4;
    let layer = 512 * 4 * (2 * 1536 + 2 * 256 + 1536 + 2 * 8960 + 7 * 16);
    let (kept, back) = parts(true, 1);
    assert_eq!(kept, 28 * input);
    assert_eq!(parts(true, 4), (7 * input, back + 3 * (layer + input)));
    // A last, shorter piece keeps its input too.
    assert_eq!(parts(true, 5).0, 6 * input);
    assert_eq!(parts(false, 1), (28 * (layer + input), back));
}

#[test]
fn passes_and_packing_decide_the_tokens() {
    let kept = |change: &dyn Fn(&mut PlanConfig)| {
        let mut config = PlanConfig::default();
        change(&mut config);
        let process = of(&config);
        process.bytes_of("kept of the layers for the way back") / (28 * 1536 * 4)
    };
    assert_eq!(kept(&|c| c.train.batch_size = 4), 2048);
    assert_eq!(kept(&|c| c.train.grad_accumulation = 4), 512);
    let packed = |c: &mut PlanConfig| {
        c.train.batch_size = 4;
        c.train.pack_tokens = Some(1024);
    };
    assert_eq!(kept(&packed), 1024);
}

#[test]
fn gradients_of_earlier_passes_are_there_during_the_loss() {
    let mut config = PlanConfig::default();
    let phases = |config: &PlanConfig| {
        let process = of(config);
        let part = process
            .parts
            .iter()
            .find(|part| part.name == "gradients, f32");
        part.unwrap().phases.clone()
    };
    assert!(!phases(&config).contains(&Phase::Loss));
    config.train.grad_accumulation = 2;
    assert!(phases(&config).contains(&Phase::Loss));
    // One batch, which is packed into two passes.
    config.train.grad_accumulation = 1;
    config.train.batch_size = 4;
    assert!(!phases(&config).contains(&Phase::Loss));
    config.train.pack_tokens = Some(1024);
    assert!(phases(&config).contains(&Phase::Loss));
}

#[test]
fn every_weight_that_is_trained_has_a_gradient_and_moments() {
    let mut config = PlanConfig::default();
    config.train.tune = Tune::Full;
    let all = 1_543_714_304;
    let process = of(&config);
    assert_eq!(process.bytes_of("weights, f32"), 4 * all);
    assert_eq!(process.bytes_of("gradients, f32"), 4 * all);
    assert_eq!(process.bytes_of("AdamW's moments"), 8 * all);
    assert_eq!(
        process.bytes_of("gradient of the head, added up"),
        12 * EMBEDDING
    );
    config.train.device = "cpu".into();
    config.train.optimizer = OptimizerKind::AdamW8bit;
    // Embeddings keep theirs in f32, and so do norms and biases, which are small.
    let moments = of(&config).bytes_of("AdamW's moments");
    let small = 28 * (2 * 1536 + 1536 + 2 * 256) + 1536;
    let linears = all - EMBEDDING - small;
    assert_eq!(
        moments,
        8 * (EMBEDDING + small) + 2 * linears + linears / 32
    );
}

#[test]
fn eight_bit_moments_are_where_the_parameters_are() {
    let mut config = PlanConfig::default();
    config.train.optimizer = OptimizerKind::AdamW8bit;
    let expected = 2 * ADAPTERS + ADAPTERS / 32;
    assert_eq!(of(&config).bytes_of("AdamW's moments"), expected);
    config.train.device = "cpu".into();
    assert_eq!(of(&config).bytes_of("AdamW's moments"), expected);
}

#[test]
fn a_state_brings_its_matrices_and_a_projection_its_moments() {
    let mut config = on_cpu();
    config.train.loss.ot_weight = 1.0;
    config.train.loss.align.cost = crate::loss::Cost::SoftmaxSimilarity;
    let exact = of(&config);
    // Without a word about it the state is the teacher's hidden state, of 3584 coordinates.
    assert_eq!(
        exact.bytes_of("similarity of logits: P, G"),
        4 * 1536 * (2 * 3584 + 1536)
    );
    assert_eq!(exact.bytes_of("the teacher's basis"), 4 * 151_936 * 3584);
    config.options.state_rank = Some(128);
    let sketch = of(&config);
    assert_eq!(sketch.bytes_of("the teacher's basis"), 4 * 151_936 * 128);

    let mut config = PlanConfig::default();
    config.train.loss.ot_weight = 0.1;
    config.train.loss.align.cost = crate::loss::Cost::Hidden;
    let process = of(&config);
    let projection = 3584 * 1536;
    assert_eq!(
        process.bytes_of("projection of hidden states, f32"),
        4 * projection
    );
    assert_eq!(
        process.bytes_of("AdamW's moments"),
        8 * (ADAPTERS + projection)
    );
}

#[test]
fn a_weight_that_only_comes_later_counts_from_the_start() {
    let mut config = on_cpu();
    assert_eq!(of(&config).bytes_of("transport"), 0);
    config.train.loss.schedule.ot_weight_end = Some(0.5);
    assert!(of(&config).bytes_of("transport") > 0);
}

#[test]
fn a_dense_student_is_held_as_asked() {
    let mut pair = Pair::reference().unwrap();
    pair.student.stored.four_bit = None;
    let mut config = PlanConfig::default();
    let of = |config: &PlanConfig| trainer(&pair, config).unwrap();
    let four_bit = of(&config).bytes_of("linears in 4 bits");
    assert!(four_bit > 0);
    config.train.quantize = Quantize::None;
    config.train.dtype = ComputeDtype::F32;
    let dense = of(&config);
    assert_eq!(dense.bytes_of("linears in 4 bits"), 0);
    assert!(dense.bytes_of("linears") > 7 * four_bit);
}
