//! Settings: what has no meaning is refused by its key, and a file gives back what was written.

use super::*;

#[test]
fn settings_without_meaning_are_refused_by_key() {
    let key = |change: &dyn Fn(&mut LossConfig)| {
        let mut config = LossConfig::default();
        change(&mut config);
        match config.validate() {
            Err(LossError::Setting { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(key(&|c| c.ce_weight = -1.0), "ce_weight");
    assert_eq!(key(&|c| c.kl_temperature = f64::NAN), "kl_temperature");
    assert_eq!(key(&|c| c.chunk_rows = 0), "chunk_rows");
    assert_eq!(key(&|c| c.align.epsilon = 0.0), "epsilon");
    assert_eq!(key(&|c| c.align.lambda = Some(0.0)), "lambda");
    assert_eq!(key(&|c| c.align.loss = AlignLoss::Detached), "loss");
    // Nothing is minimised by these.
    for plan in [PlanKind::Mutual, PlanKind::Uniform, PlanKind::Links] {
        assert_eq!(key(&|c| c.align.plan = plan), "loss");
    }
    assert_eq!(key(&|c| c.align.position = Some(-1.0)), "position");
    assert_eq!(key(&|c| c.align.bytes = f64::NAN), "bytes");
    assert_eq!(key(&|c| c.align.rho_teacher = 0.0), "rho_teacher");
    assert_eq!(key(&|c| c.align.mass = 1.5), "mass");
    let monotone_blocks = |c: &mut LossConfig| {
        (c.align.plan, c.align.block_size) = (PlanKind::Monotone, 8);
    };
    assert_eq!(key(&monotone_blocks), "block_size");
    assert_eq!(key(&|c| c.align.layers.clear()), "layers");
    let twice = |c: &mut LossConfig| {
        let weighted = StateLayer {
            weight: 2.0,
            ..StateLayer::default()
        };
        c.align.layers.push(weighted);
    };
    assert_eq!(key(&twice), "layers");
    let without_fit = |c: &mut LossConfig| {
        (c.align.projection, c.align.centering) = (Projection::Random, Some(Centering::Fitted));
    };
    assert_eq!(key(&without_fit), "centering");
    assert_eq!(key(&|c| c.jsd_beta = 1.0), "jsd_beta");
    // 0, infinity or 1 in f32.
    assert_eq!(key(&|c| c.align.epsilon = 1e-50), "epsilon");
    assert_eq!(key(&|c| c.align.kappa = 1e50), "kappa");
    assert_eq!(key(&|c| c.kl_temperature = 1e-300), "kl_temperature");
    assert_eq!(key(&|c| c.ce_weight = 1e40), "ce_weight");
    assert_eq!(key(&|c| c.jsd_beta = 1.0 - 1e-12), "jsd_beta");
    assert_eq!(
        key(&|c| c.align.projection_lr = Some(-1.0)),
        "projection_lr"
    );
    let still = |c: &mut LossConfig| {
        (c.align.projection, c.align.projection_lr) = (Projection::Random, Some(0.0));
    };
    assert_eq!(key(&still), "projection_lr");
    assert_eq!(
        key(&|c| (c.ce_weight, c.kl_weight, c.ot_weight) = (0.0, 0.0, 0.0)),
        "ce_weight"
    );
    assert!(LossConfig::literal().validate().is_ok());
    assert_eq!(LossConfig::literal().align.epsilon(), 10.0);
    assert!(LossConfig::preset("other").is_err());
}

#[test]
fn settings_survive_their_file() {
    for config in [LossConfig::default(), LossConfig::literal()] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<LossConfig>(&text).unwrap(), config);
    }
    assert!(toml::from_str::<LossConfig>("[align]\nepsillon = 0.1").is_err());
}
