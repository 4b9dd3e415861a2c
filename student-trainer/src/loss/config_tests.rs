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
    assert_eq!(key(&|c| c.ot.epsilon = 0.0), "epsilon");
    assert_eq!(key(&|c| c.ot.lambda = Some(0.0)), "lambda");
    assert_eq!(key(&|c| c.ot.objective = Objective::Detached), "objective");
    assert_eq!(key(&|c| c.ot.position_prior = -1.0), "position_prior");
    // The default objective is the value of a plan at its own cost.
    assert_eq!(
        key(&|c| c.ot.plan_cost = PlanCost::SquaredEuclidean),
        "plan_cost"
    );
    assert_eq!(key(&|c| c.jsd_beta = 1.0), "jsd_beta");
    // 0, infinity or 1 in f32.
    assert_eq!(key(&|c| c.ot.epsilon = 1e-50), "epsilon");
    assert_eq!(key(&|c| c.ot.kappa = 1e50), "kappa");
    assert_eq!(key(&|c| c.kl_temperature = 1e-300), "kl_temperature");
    assert_eq!(key(&|c| c.ce_weight = 1e40), "ce_weight");
    assert_eq!(key(&|c| c.jsd_beta = 1.0 - 1e-12), "jsd_beta");
    assert_eq!(
        key(&|c| c.hidden_similarity = Similarity::Bhattacharyya),
        "hidden_similarity"
    );
    assert_eq!(key(&|c| c.hidden_lr = 0.0), "hidden_lr");
    assert_eq!(
        key(&|c| (c.ce_weight, c.kl_weight, c.ot_weight) = (0.0, 0.0, 0.0)),
        "ce_weight"
    );
    assert!(LossConfig::literal().validate().is_ok());
    assert_eq!(LossConfig::literal().ot.epsilon(), 10.0);
    assert!(LossConfig::preset("other").is_err());
}

#[test]
fn settings_survive_their_file() {
    for config in [LossConfig::default(), LossConfig::literal()] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<LossConfig>(&text).unwrap(), config);
    }
    assert!(toml::from_str::<LossConfig>("[ot]\nepsillon = 0.1").is_err());
}
