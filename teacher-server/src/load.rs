//! Provides the loading of everything that is served: tokenizer, corpus, weights, plan, production.

mod answerer;
#[cfg(test)]
mod bench;
mod cached;
mod files;
mod outlook;
mod swapped;
mod taken;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill_model::{Base, Decoder, LoadOptions, ModelConfig, Weights, backend, check_weights_fit};
use distill_proto::{Fingerprint, fingerprint::FingerprintBuilder, v1};
use distill_text::{Corpus, TokenizerFiles, Vocabulary, Windowing, read_corpus};

use crate::{
    Error, Result,
    answers::Answerer,
    backbone::{self, Backbone},
    basis::Basis,
    cache::{Cache, projection_digest},
    config::{Config, StateSetting, VramMode},
    forward::{Capture, Teacher},
    lease::{Lease, LeaseOptions, Record},
    plan::{self, Identity, Pairs, Plan},
    production::Production,
    progress::Progress,
    report::Reporter,
    sketch::{Sketch, Summary},
    store::{BlockStore, Spool},
};
use files::TeacherFiles;
pub(crate) use files::located;
pub(crate) use outlook::look_ahead;
use swapped::Swapped;

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
    /// Reads prompts for the teacher, where there is one.
    pub answerer: Option<Arc<Answerer>>,
    /// The cache that is served or filled; its lock is held as long as it is here.
    pub cache: Option<Cache>,
}

impl Engine {
    /// Finds the model, on the hub where it is none of this machine's directories; reads tokenizer, corpus and weights,
    /// cheapest first, and reports what was found; with a cache, only what is missing in it. Ends early once `stopped` says
    /// so.
    ///
    /// # Errors
    /// The first thing wrong with any of them; `ShuttingDown`.
    pub fn load(config: &Config, reporter: &Reporter, stopped: &dyn Fn() -> bool) -> Result<Self> {
        if let Some(cache) = &config.cache {
            return cached::load(config, cache, reporter, stopped);
        }
        let device = config.device.open()?;
        let config = &config.on(&device);
        let mut opened = Opened::read(config, device, reporter, stopped)?;
        let Beginning { plan, states, info } = opened
            .begin(config, reporter, stopped)
            .map_err(|error| error.explained(&opened.device))?;
        let store = Spool::create(config.spool_dir.as_deref(), plan.count())?;
        let progress = Progress::new(plan.count(), plan.token_count());
        let plan = Arc::new(plan);
        let store = Box::new(store);
        Ok(Self {
            production: states
                .origin
                .start(config, *reporter, plan.clone(), store, progress)?,
            plan,
            basis: states.basis.map(Arc::new),
            info,
            tokenizer: opened.identity.tokenizer,
            vocabulary: opened.identity.vocabulary,
            tokens: Arc::new(opened.tokenizer.vocabulary()),
            positions_max: opened.model.max_position_embeddings,
            answerer: Some(Arc::new(opened.answerer(config))),
            cache: None,
        })
    }
}

/// Reads the weights onto `device`, where there is room for them: `budget_bytes`, or what is free.
pub(crate) fn load_backbone(
    model: &ModelConfig,
    weights: &Weights,
    dtype: DType,
    device: &Device,
    budget_bytes: Option<u64>,
) -> Result<Box<dyn Backbone>> {
    let options = load_options(dtype, device);
    let other = match model.model_type.is_outside() {
        true => "a smaller teacher",
        false => "a 4-bit or a smaller teacher",
    };
    let remedy = match dtype {
        DType::F32 => format!("--dtype bf16 takes half of it; else use {other}"),
        _ => format!("end what else holds memory there, or use {other}"),
    };
    check_weights_fit(model, weights, &options, budget_bytes, &remedy)?;
    backbone::load(model, weights, &options).map_err(|error| Error::from(error).explained(device))
}

/// What is known of a teacher and its corpus before any weight is in memory.
struct Opened {
    device: Device,
    tokenizer: TokenizerFiles,
    model: ModelConfig,
    corpus: Corpus,
    weights: Arc<Weights>,
    identity: Identity,
}

/// Where a teacher comes from when frames are computed.
enum Origin {
    /// It is in memory.
    Loaded(Box<Teacher>),
    /// It is brought to the device in its turns.
    Swapped(Box<Swapped>),
}

impl Origin {
    /// Keeps the coordinates `h projection` of every hidden state.
    fn with_projection(self, projection: Tensor) -> Self {
        match self {
            Self::Loaded(teacher) => Self::Loaded(Box::new(teacher.with_projection(projection))),
            Self::Swapped(swapped) => Self::Swapped(Box::new(swapped.with_projection(projection))),
        }
    }

    /// Memory that the weights take on the device.
    fn weight_bytes(&self) -> u64 {
        match self {
            Self::Loaded(teacher) => teacher.weight_bytes() as u64,
            Self::Swapped(swapped) => swapped.weight_bytes(),
        }
    }

    /// What the handshake calls it.
    fn vram_mode(&self) -> v1::VramMode {
        match self {
            Self::Loaded(_) => v1::VramMode::Resident,
            Self::Swapped(_) => v1::VramMode::Swap,
        }
    }

    fn start(
        self,
        config: &Config,
        reporter: Reporter,
        plan: Arc<Plan>,
        store: Box<dyn BlockStore>,
        progress: Progress,
    ) -> Result<Production> {
        match self {
            Self::Loaded(teacher) => {
                Production::start(teacher, plan, store, config.queue, progress)
            }
            Self::Swapped(swapped) => {
                let record = Record::of_device(&config.device.to_string());
                let report = Box::new(move |state: &str, holder: Option<&str>, epoch| {
                    reporter.device(state, holder, epoch);
                });
                let options = LeaseOptions::new(config.window, config.yield_timeout_s);
                let lease = Lease::new(options, report, record);
                Production::start_swapping(swapped.into_swap(), lease, plan, store, progress)
            }
        }
    }
}

impl Opened {
    fn read(
        config: &Config,
        device: Device,
        reporter: &Reporter,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let files = TeacherFiles::open(config, stopped)?;
        let parameters = files.parameter_count()?;
        let TeacherFiles {
            tokenizer,
            model,
            weights,
        } = files;
        check_shape(config, &model, &tokenizer)?;
        backbone::check(&model, &weights)?;
        let windowing = Windowing::new(config.seq_len).strict(config.strict);
        let corpus = read_corpus(&config.corpus, &tokenizer, &windowing, &mut |_| {})?;
        reporter.corpus(&corpus);
        let quantisation = weights.gguf().map(|gguf| gguf.quantisation());
        reporter.weights(parameters, quantisation.as_deref());
        let weights = Arc::new(weights);
        let identity = Identity {
            model: model_fingerprint(&weights)?,
            tokenizer: tokenizer.fingerprint(),
            vocabulary: tokenizer.vocabulary_fingerprint(),
            vocab_size: tokenizer.size(),
            backend: backend_and_build(&device)?,
        };
        Ok(Self {
            device,
            tokenizer,
            model,
            corpus,
            weights,
            identity,
        })
    }

    /// The teacher: its weights in memory, or where they can be had from.
    fn origin(&self, config: &Config) -> Result<Origin> {
        match config.vram_mode {
            VramMode::Resident => {
                let teacher = load_teacher(
                    config,
                    &self.device,
                    &self.model,
                    &self.weights,
                    self.tokenizer.size(),
                )?;
                Ok(Origin::Loaded(Box::new(teacher)))
            }
            VramMode::Swap => Ok(Origin::Swapped(Box::new(Swapped::new(config, self)?))),
        }
    }

    /// The matrix behind the last hidden state.
    fn head_basis(&self, config: &Config, origin: &Origin) -> Result<Basis> {
        match origin {
            Origin::Loaded(teacher) => Basis::new(teacher.head().clone()),
            Origin::Swapped(_) => {
                // It is asked for while the device is lent, so it stays in host memory.
                let options = load_options(config.dtype.on(&self.device), &Device::Cpu);
                let head = Decoder::load_head(&self.model, &self.weights, &options)?;
                Basis::new(head.narrow(self.tokenizer.size() as usize)?)
            }
        }
    }

    /// Reads the weights and settles what the capture of this corpus is.
    fn begin(
        &mut self,
        config: &Config,
        reporter: &Reporter,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Beginning> {
        let origin = self.origin(config)?;
        let sequences = std::mem::take(&mut self.corpus.sequences);
        // The fingerprint comes later: it may depend on a sketch of these sequences.
        let none = Fingerprint::default();
        let corpus = self.corpus.fingerprint;
        let mut plan = Plan::of_sequences(none, corpus, sequences, config.batch_size)?;
        let states = States::of(config, self, origin, &plan, stopped)?;
        if let Some(summary) = &states.sketch {
            reporter.sketch(summary);
        }
        plan.fingerprint = plan::fingerprint(config, &self.identity, states.sketch_digest()?)?;
        let info = server_info(config, &self.model, &self.identity, &plan, &states);
        reporter.model(config, &self.model, &info, states.origin.weight_bytes());
        Ok(Beginning { plan, states, info })
    }
}

/// A capture before its first frame.
struct Beginning {
    plan: Plan,
    states: States,
    /// The handshake.
    info: v1::GetServerInfoResponse,
}

/// The teacher, ready to say its states, with the matrices behind them.
struct States {
    origin: Origin,
    basis: Option<Basis>,
    /// Takes a hidden state to its coordinates in a sketch.
    projection: Option<Tensor>,
    sketch: Option<Summary>,
}

impl States {
    fn of(
        config: &Config,
        opened: &Opened,
        origin: Origin,
        plan: &Plan,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let basis = match (config.state, &origin) {
            (StateSetting::None | StateSetting::Hidden { .. }, _) => None,
            (StateSetting::Exact(_), _) => Some(opened.head_basis(config, &origin)?),
            (StateSetting::Sketch { rank, coding }, Origin::Loaded(teacher)) => {
                let sketch = Sketch::make(teacher, plan, rank, coding, stopped)?;
                return Ok(Self {
                    origin: origin.with_projection(sketch.projection.clone()),
                    basis: Some(sketch.basis),
                    projection: Some(sketch.projection),
                    sketch: Some(sketch.summary),
                });
            }
            (StateSetting::Sketch { .. }, Origin::Swapped(_)) => {
                return Err(Error::config(
                    "vram-mode",
                    "a sketch is made before anything is lent, and then belongs to a cache; begin one with `precompute --cache DIR` (it may be interrupted) and serve that, or use --state exact",
                ));
            }
        };
        Ok(Self {
            origin,
            basis,
            projection: None,
            sketch: None,
        })
    }

    /// Names the directions of a sketch.
    fn sketch_digest(&self) -> Result<Option<Fingerprint>> {
        let projection = self.projection.as_ref();
        projection.map(projection_digest).transpose()
    }
}

/// Refuses what a model of this shape cannot give.
fn check_shape(config: &Config, model: &ModelConfig, tokenizer: &TokenizerFiles) -> Result<()> {
    if config.seq_len > model.max_position_embeddings {
        let (asked, most) = (config.seq_len, model.max_position_embeddings);
        return Err(Error::config(
            "seq-len",
            format!("{asked} tokens are more than the {most} positions of this model"),
        ));
    }
    Capture::new(config).check(model, tokenizer.size())
}

/// How the teacher's weights are read.
fn load_options(dtype: DType, device: &Device) -> LoadOptions {
    LoadOptions {
        dtype,
        device: device.clone(),
        base: Base::AsStored,
        lora: None,
    }
}

/// Reads the weights, to be used as the settings say.
fn load_teacher(
    config: &Config,
    device: &Device,
    model: &ModelConfig,
    weights: &Weights,
    vocab_size: u32,
) -> Result<Teacher> {
    let dtype = config.dtype.on(device);
    let backbone = load_backbone(model, weights, dtype, device, config.memory_budget_bytes)?;
    Teacher::new(backbone, vocab_size, Capture::new(config))
}

/// Hash of weights and configuration.
pub(crate) fn model_fingerprint(weights: &Weights) -> Result<Fingerprint> {
    Ok(FingerprintBuilder::new("model")
        .field("weights", &weights.fingerprint()?)
        .finish())
}

/// Bytes are promised equal for the same of these only.
fn backend_and_build(device: &Device) -> Result<String> {
    Ok(format!(
        "{} candle-0.11 teacher-server-{}",
        backend(device)?,
        env!("CARGO_PKG_VERSION")
    ))
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
    let (state_rank, state_layers) = match config.state {
        StateSetting::Hidden { layers, .. } => (
            layers.len() * model.hidden_size,
            layers.of_model(model.num_hidden_layers),
        ),
        _ => (states.basis.as_ref().map_or(0, Basis::rank), Vec::new()),
    };
    let state_layer = match state_layers[..] {
        [layer] => layer,
        _ => 0,
    };
    let name = config.model.file_name().unwrap_or(config.model.as_os_str());
    let mut info = v1::GetServerInfoResponse {
        model_fingerprint: identity.model.to_hex(),
        tokenizer_fingerprint: identity.tokenizer.to_hex(),
        corpus_fingerprint: plan.corpus.to_hex(),
        plan_fingerprint: plan.fingerprint.to_hex(),
        effective_vocab_size: identity.vocab_size,
        head_rows: model.vocab_size as u32,
        tokenizer_size: identity.vocab_size,
        top_k: keep.width_max(identity.vocab_size as usize) as u32,
        estimator: keep.estimator.code().into(),
        temperatures: config.temperatures.clone(),
        state_kind: kind.into(),
        state_rank: state_rank as u32,
        state_error: states.sketch.map_or(0.0, |sketch| sketch.error),
        sequence_count: plan.count(),
        token_count: plan.token_count(),
        seq_len: plan.longest() as u32,
        target_count: plan.target_count(),
        vram_mode: states.origin.vram_mode().into(),
        server_version: format!("{} ({})", env!("CARGO_PKG_VERSION"), identity.backend),
        model_name: name.to_string_lossy().into_owned(),
        hidden_size: model.hidden_size as u32,
        vocabulary_fingerprint: identity.vocabulary.to_hex(),
        state_layer,
        state_layers,
        draws: keep.drawn() as u32,
        ..Default::default()
    };
    Pairs::of(plan.entries()).tell(&mut info);
    info
}

#[cfg(test)]
mod tests;
