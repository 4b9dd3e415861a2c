//! Provides the loading of everything that is served: tokenizer, corpus, weights, plan, production.

use std::sync::Arc;

use candle_core::Device;
use distill_hub::Options;
use distill_model::{Base, Decoder, LoadOptions, ModelConfig, Weights};
use distill_proto::{Fingerprint, fingerprint::FingerprintBuilder, v1};
use distill_text::{TokenizerFiles, Vocabulary, Windowing, read_corpus};

use crate::{
    Error, Result,
    basis::Basis,
    config::{Config, StateSetting},
    forward::{Capture, Teacher},
    plan::{Identity, Plan},
    production::Production,
    progress::Progress,
    report::Reporter,
    sketch::{Sketch, Summary},
    store::Spool,
};

/// Everything behind the service once the weights are in.
pub struct Engine {
    /// What is served.
    pub plan: Arc<Plan>,
    /// Computes and keeps it.
    pub production: Production,
    /// The matrix behind `state`.
    pub basis: Option<Arc<Basis>>,
    /// The handshake.
    pub info: v1::GetServerInfoResponse,
    /// Names what the tokenizer does.
    pub tokenizer: Fingerprint,
    /// Names which id means which token.
    pub vocabulary: Fingerprint,
    /// The bytes behind every id.
    pub tokens: Arc<Vocabulary>,
    /// Longest sequence the model takes.
    pub positions_max: usize,
}

impl Engine {
    /// Finds the model, on the hub where it is none of this machine's directories; reads tokenizer, corpus and weights,
    /// cheapest first, and reports what was found. Ends early once `stopped` says so.
    ///
    /// # Errors
    /// The first thing wrong with any of them; `ShuttingDown`.
    pub fn load(config: &Config, reporter: &Reporter, stopped: &dyn Fn() -> bool) -> Result<Self> {
        let located = distill_hub::resolve(&config.model, &Options::model(stopped));
        let directory = match located {
            Err(distill_hub::Error::Stopped) => return Err(Error::ShuttingDown),
            located => located?.path,
        };
        let tokenizer = TokenizerFiles::open(&directory)?;
        let model = ModelConfig::load(&directory)?;
        if config.seq_len > model.max_position_embeddings {
            let (asked, most) = (config.seq_len, model.max_position_embeddings);
            return Err(Error::Config {
                key: "seq-len",
                reason: format!("{asked} tokens are more than the {most} positions of this model"),
            });
        }
        let corpus = read_corpus(
            &config.corpus,
            &tokenizer,
            &Windowing::new(config.seq_len),
            &mut |_| {},
        )?;
        reporter.corpus(&corpus);
        let weights = Weights::open(&directory)?;
        reporter.weights(parameter_count(&weights)?);
        let device = Device::Cpu;
        let identity = Identity {
            model: model_fingerprint(&weights)?,
            tokenizer: tokenizer.fingerprint(),
            vocabulary: tokenizer.vocabulary_fingerprint(),
            vocab_size: tokenizer.size(),
            backend: backend(&device),
        };
        let options = LoadOptions {
            dtype: config.dtype.dtype(),
            device,
            base: Base::AsStored,
            lora: None,
        };
        let decoder = Decoder::load(&model, &weights, &options)?;
        let teacher = Teacher::new(decoder, tokenizer.size(), Capture::new(config))?;
        let plan = Arc::new(Plan::new(config, &identity, corpus)?);
        let states = States::of(config, teacher, &plan, stopped)?;
        if let Some(summary) = &states.sketch {
            reporter.sketch(summary);
        }
        let tokens = Arc::new(tokenizer.vocabulary());
        Self::start(config, reporter, &model, identity, plan, states, tokens)
    }

    fn start(
        config: &Config,
        reporter: &Reporter,
        model: &ModelConfig,
        identity: Identity,
        plan: Arc<Plan>,
        states: States,
        tokens: Arc<Vocabulary>,
    ) -> Result<Self> {
        let info = server_info(config, model, &identity, &plan, &states);
        reporter.model(config, model, &info);
        let store = Spool::create(config.spool_dir.as_deref(), plan.count())?;
        let production = Production::start(
            Box::new(states.teacher),
            plan.clone(),
            Box::new(store),
            config.queue,
            Progress::new(plan.count(), plan.token_count()),
        )?;
        Ok(Self {
            plan,
            production,
            basis: states.basis.map(Arc::new),
            info,
            tokenizer: identity.tokenizer,
            vocabulary: identity.vocabulary,
            tokens,
            positions_max: model.max_position_embeddings,
        })
    }
}

/// The teacher, ready to say its states, with the matrix behind them.
struct States {
    teacher: Teacher,
    basis: Option<Basis>,
    sketch: Option<Summary>,
}

impl States {
    fn of(
        config: &Config,
        teacher: Teacher,
        plan: &Plan,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let (basis, sketch) = match config.state {
            StateSetting::None | StateSetting::Hidden { .. } => (None, None),
            StateSetting::Exact(_) => (Some(Basis::new(teacher.head().clone())?), None),
            StateSetting::Sketch { rank, coding } => {
                let sketch = Sketch::make(&teacher, plan, rank, coding, stopped)?;
                return Ok(Self {
                    teacher: teacher.with_projection(sketch.projection),
                    basis: Some(sketch.basis),
                    sketch: Some(sketch.summary),
                });
            }
        };
        Ok(Self {
            teacher,
            basis,
            sketch,
        })
    }
}

/// Hash of weights and configuration.
fn model_fingerprint(weights: &Weights) -> Result<Fingerprint> {
    Ok(FingerprintBuilder::new("model")
        .field("weights", &weights.fingerprint()?)
        .finish())
}

/// Numbers in the checkpoint, tied heads once; a packed 4-bit byte holds two.
fn parameter_count(weights: &Weights) -> Result<u64> {
    let mut count = 0;
    for name in weights.names() {
        if name.ends_with(".weight") || name.ends_with(".bias") {
            let elements = weights.shape(name)?.iter().product::<usize>() as u64;
            let packed = weights.contains(&format!("{name}.quant_state.bitsandbytes__nf4"));
            count += if packed { 2 * elements } else { elements };
        }
    }
    Ok(count)
}

/// Bytes are promised equal for the same of these only.
fn backend(device: &Device) -> String {
    let place = if device.is_cpu() { "cpu" } else { "cuda" };
    format!(
        "{place} candle-0.11 teacher-server-{}",
        env!("CARGO_PKG_VERSION")
    )
}

fn server_info(
    config: &Config,
    model: &ModelConfig,
    identity: &Identity,
    plan: &Plan,
    states: &States,
) -> v1::GetServerInfoResponse {
    let kind = config.state.kind().map_or(v1::StateKind::None, Into::into);
    let keep = Capture::new(config).keep;
    let (state_rank, state_layer) = match config.state {
        StateSetting::Hidden { layer, .. } => (model.hidden_size, layer),
        _ => (states.basis.as_ref().map_or(0, Basis::rank), 0),
    };
    let name = config.model.file_name().unwrap_or(config.model.as_os_str());
    v1::GetServerInfoResponse {
        format_version: distill_proto::FORMAT_VERSION,
        model_fingerprint: identity.model.to_hex(),
        tokenizer_fingerprint: identity.tokenizer.to_hex(),
        corpus_fingerprint: plan.corpus.to_hex(),
        plan_fingerprint: plan.fingerprint.to_hex(),
        effective_vocab_size: identity.vocab_size,
        head_rows: model.vocab_size as u32,
        tokenizer_size: identity.vocab_size,
        top_k: keep.width_max(identity.vocab_size as usize) as u32,
        estimator: v1::Estimator::from(keep.estimator).into(),
        temperatures: config.temperatures.clone(),
        state_kind: kind.into(),
        state_rank: state_rank as u32,
        state_error: states.sketch.map_or(0.0, |sketch| sketch.error),
        sequence_count: plan.count(),
        token_count: plan.token_count(),
        seq_len: plan.longest() as u32,
        target_count: plan.target_count(),
        vram_mode: v1::VramMode::Resident.into(),
        server_version: format!("{} ({})", env!("CARGO_PKG_VERSION"), identity.backend),
        model_name: name.to_string_lossy().into_owned(),
        hidden_size: model.hidden_size as u32,
        vocabulary_fingerprint: identity.vocabulary.to_hex(),
        state_layer: state_layer as u32,
    }
}
