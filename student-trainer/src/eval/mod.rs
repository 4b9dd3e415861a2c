/*! The evaluation of a student on held-out text: cross-entropy, perplexity, and how far it is from the teacher.

```text
 files ──> windows ──> hidden states ──> loss::head_values: CE (and KL)   [N, V] never exists
                └──> teacher: ScoreTokens ──> rows ──┘
 prompts ──> answers: greedy decoding ──> exact match of the last line
```
*/

pub mod answers;
mod report;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use candle_core::{DType, Tensor};
use distill_model::Decoder;
use distill_proto::Rows;
use distill_text::{Sequence, Windowing, read_corpus};

use crate::{
    Error, Result,
    client::{ConnectOptions, SequenceToScore, ServerInfo, Teacher, Vocabularies},
    config::{ComputeDtype, Quantize, settings::settings},
    loss::{HeadGeometry, LossConfig, OtConfig, Targets, head_values, transport_plan},
    run::{AdapterConfig, Progress, load_adapter, write_atomically},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
use answers::{Generator, write_answers};
pub use report::EvalReport;

/// Sequences in one question to the teacher, at most.
const SEQUENCES_A_CALL: usize = 4;
/// Tokens in one question to the teacher, at most; it refuses more than 65536.
const TOKENS_A_CALL: usize = 1 << 15;

settings! {
    /// Everything `eval` can be told.
    pub struct EvalConfig {
        /// The student's base: a directory, or a name on the hub (org/name, org/name@revision).
        student: PathBuf = PathBuf::new(),
        /// Directory of a PEFT adapter over it.
        adapter: Option<PathBuf> = None,
        /// Text to evaluate on: .txt, .md, .jsonl or .parquet files, or directories of them.
        data: Vec<PathBuf> = Vec::new(),
        /// Longest sequence in tokens.
        seq_len: usize = 512,
        /// Stop after this many sequences.
        max_sequences: Option<usize> = None,
        /// Address of a teacher to compare with, through ScoreTokens.
        teacher: Option<String> = None,
        /// PEM file with the authority that signed an https teacher's certificate.
        ca_cert: Option<PathBuf> = None,
        /// File with the token that the teacher asks for.
        token_file: Option<PathBuf> = None,
        /// Seconds to wait for the teacher to be ready.
        connect_timeout_seconds: u64 = 1800,
        /// Temperature of the KL to the teacher; one of those that the teacher stores.
        kl_temperature: f64 = 1.0,
        /// Rows whose logits exist at one time.
        chunk_rows: usize = 128,
        /// How a full-precision student is held: nf4 or none.
        quantize: Quantize = Quantize::Nf4,
        /// Compute type: auto, f32, bf16 or f16.
        dtype: ComputeDtype = ComputeDtype::Auto,
        /// Where to compute: auto, cpu, cuda or cuda:N.
        device: String = "auto".to_owned(),
        /// Let the student complete every prompt greedily, and count the answers whose last line is the corpus's.
        exact_match: bool = false,
        /// Longest answer in tokens.
        max_new_tokens: usize = 256,
        /// JSON Lines file for the answers: prompt, reference, generated, correct.
        answers_out: Option<PathBuf> = None,
        /// JSON file for the transport plans of a few sequences; needs a teacher.
        plans_out: Option<PathBuf> = None,
        /// Sequences whose plans are written.
        plans: usize = 3,
        /// Print a JSON object.
        json: bool = false,
    }
}

/// Evaluates as `config` says. Blocks the thread; call it outside of an async runtime.
///
/// # Errors
/// A file that cannot be used, or a teacher that does not fit.
pub fn run(config: &EvalConfig, shutdown: &Shutdown) -> Result<EvalReport> {
    if config.data.is_empty() {
        return Err(Error::Config(
            "data: name at least one file with --data".into(),
        ));
    }
    if config.plans_out.is_some() && config.teacher.is_none() {
        return Err(Error::Config(
            "plans_out: a plan is between a student and a teacher; name one with --teacher".into(),
        ));
    }
    let loss = loss_config(config);
    loss.validate()?;
    let place = Place::choose(&config.device, config.dtype)?;
    let files = StudentFiles::find(&config.student, shutdown)?;
    let asker = match &config.teacher {
        Some(address) => Some(Asker::connect(config, address, &files, &loss, shutdown)?),
        None => None,
    };
    let windowing = Windowing::new(config.seq_len);
    let corpus = read_corpus(&config.data, &files.tokenizer, &windowing, &mut |_| {})?;
    let count = config
        .max_sequences
        .unwrap_or(usize::MAX)
        .min(corpus.sequences.len());

    let decoder = load(config, &files, &place)?;
    let head = decoder
        .head()
        .narrow(0, 0, files.tokenizer.size() as usize)?;
    let geometry = HeadGeometry::new(&head, None)?;
    let evaluation = Evaluation {
        decoder: &decoder,
        geometry: &geometry,
        loss: &loss,
    };
    let sequences_a_call = (TOKENS_A_CALL / config.seq_len).clamp(1, SEQUENCES_A_CALL);
    let mut report = EvalReport::default();
    let mut plans = Vec::new();
    let mut progress = Progress::start(count as u64, "sequence");
    let start = Instant::now();
    for sequences in corpus.sequences[..count].chunks(sequences_a_call) {
        let rows = asker
            .as_ref()
            .map(|asker| asker.score(sequences))
            .transpose()?;
        for (i, sequence) in sequences.iter().enumerate() {
            let rows = rows.as_ref().map(|rows| &rows[i]);
            let hidden = evaluation.add(sequence, rows, &mut report)?;
            if let Some(rows) =
                rows.filter(|_| config.plans_out.is_some() && plans.len() < config.plans)
            {
                plans.push(plan(sequence, &hidden, rows, &geometry)?);
            }
            progress.advance(|| format!("CE {:.4}", report.ce()));
        }
        if shutdown.is_requested() {
            break;
        }
    }
    progress.finish();
    report.seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &config.plans_out {
        let json = serde_json::to_vec(&plans).map_err(|e| Error::file(path, e.to_string()))?;
        write_atomically(path, &json)?;
    }
    if config.exact_match || config.answers_out.is_some() {
        let generator = Generator {
            decoder: &decoder,
            geometry: &geometry,
            tokenizer: &files.tokenizer,
            max_new_tokens: config.max_new_tokens,
        };
        answer(
            config,
            &generator,
            &corpus.sequences[..count],
            &mut report,
            shutdown,
        )?;
    }
    report.teacher_top_k = asker.map(|asker| asker.info.top_k);
    Ok(report)
}

fn answer(
    config: &EvalConfig,
    generator: &Generator<'_>,
    sequences: &[Sequence],
    report: &mut EvalReport,
    shutdown: &Shutdown,
) -> Result<()> {
    let start = Instant::now();
    let mut progress = Progress::start(sequences.len() as u64, "answer");
    let (mut asked, mut correct) = (0_usize, 0_usize);
    let answers = generator.answers(sequences, &mut |answer| {
        asked += 1;
        correct += usize::from(answer.correct);
        progress.advance(|| format!("{:.1} % exact", 100.0 * correct as f64 / asked as f64));
        !shutdown.is_requested()
    })?;
    progress.finish();
    if answers.is_empty() {
        return Err(Error::Config(
            "exact_match: there is no prompt with a completion in the data; use JSON Lines with `prompt` and `completion`"
                .into(),
        ));
    }
    report.answered = Some((answers.len(), correct));
    report.answer_seconds = start.elapsed().as_secs_f64();
    match &config.answers_out {
        Some(path) => write_answers(path, &answers),
        None => Ok(()),
    }
}

/// A transport plan with what its rows and columns stand for.
#[derive(Debug, serde::Serialize)]
struct Plan {
    /// The targets, in order: both sides have the same here.
    tokens: Vec<String>,
    /// `[N, N]`, rows of the student, columns of the teacher.
    plan: Vec<Vec<f32>>,
}

/// The `kl` cost's plan of one sequence, without the position prior, so that it shows what the distributions say.
fn plan(
    sequence: &Sequence,
    hidden: &Tensor,
    rows: &Rows,
    geometry: &HeadGeometry,
) -> Result<Plan> {
    let ot = OtConfig {
        position_prior: 0.0,
        ..OtConfig::default()
    };
    let plan = transport_plan(hidden, &Targets::from_rows(rows), geometry, &ot)?;
    let targets = (0..sequence.token_ids.len()).filter(|&t| sequence.target_mask[t]);
    let text = |t: usize| {
        let (start, end) = sequence.byte_offsets[t];
        let text = sequence.text.get(start as usize..end as usize);
        text.unwrap_or_default().to_owned()
    };
    Ok(Plan {
        tokens: targets.map(text).collect(),
        plan: plan.chunks(rows.rows).map(<[f32]>::to_vec).collect(),
    })
}

/// CE always, KL where there is a teacher, no transport.
fn loss_config(config: &EvalConfig) -> LossConfig {
    LossConfig {
        ce_weight: 1.0,
        kl_weight: if config.teacher.is_some() { 1.0 } else { 0.0 },
        kl_temperature: config.kl_temperature,
        ot_weight: 0.0,
        chunk_rows: config.chunk_rows,
        ..LossConfig::default()
    }
}

fn load(config: &EvalConfig, files: &StudentFiles, place: &Place) -> Result<Decoder> {
    let Some(directory) = &config.adapter else {
        return files.load(config.quantize, place, None);
    };
    let adapter = AdapterConfig::read(directory)?;
    let decoder = files.load(config.quantize, place, Some(adapter.lora()))?;
    load_adapter(directory, &decoder.parameters())?;
    Ok(decoder)
}

/// The teacher, asked from a thread that is not async.
struct Asker {
    runtime: tokio::runtime::Runtime,
    teacher: Teacher,
    info: ServerInfo,
}

impl Asker {
    fn connect(
        config: &EvalConfig,
        address: &str,
        files: &StudentFiles,
        loss: &LossConfig,
        shutdown: &Shutdown,
    ) -> Result<Self> {
        let options = ConnectOptions {
            address: address.to_owned(),
            ca_cert: config.ca_cert.clone(),
            token_file: config.token_file.clone(),
            timeout: Duration::from_secs(config.connect_timeout_seconds),
        };
        let runtime = crate::client::runtime()?;
        let (teacher, info) = runtime.block_on(async {
            let teacher = Teacher::connect(&options, shutdown).await?;
            let info = teacher.info().await?;
            Ok::<_, Error>((teacher, info))
        })?;
        if info.check_student(&files.tokenizer, files.config.vocab_size)? == Vocabularies::Other {
            return Err(Error::Mismatch {
                what: "vocabulary fingerprint",
                teacher: info.vocabulary.to_string(),
                student: files.tokenizer.vocabulary_fingerprint().to_string(),
                remedy: "eval compares students with the teacher's vocabulary only; leave --teacher out for cross-entropy alone",
            });
        }
        loss.check_teacher(
            info.estimator,
            &info.temperatures,
            info.state.map(|(kind, _)| kind),
        )?;
        Ok(Self {
            runtime,
            teacher,
            info,
        })
    }

    fn score(&self, sequences: &[Sequence]) -> Result<Vec<Rows>> {
        let asked: Vec<_> = sequences
            .iter()
            .map(|sequence| SequenceToScore {
                token_ids: &sequence.token_ids,
                target_mask: &sequence.target_mask,
            })
            .collect();
        self.runtime
            .block_on(self.teacher.score(&self.info, &asked))
    }
}

struct Evaluation<'a> {
    decoder: &'a Decoder,
    geometry: &'a HeadGeometry,
    loss: &'a LossConfig,
}

impl Evaluation<'_> {
    /// Adds one sequence to the report; gives the hidden states before its targets.
    fn add(
        &self,
        sequence: &Sequence,
        rows: Option<&Rows>,
        report: &mut EvalReport,
    ) -> Result<Tensor> {
        let targets: Vec<usize> = (0..sequence.token_ids.len())
            .filter(|&t| sequence.target_mask[t])
            .collect();
        let labels: Vec<u32> = targets.iter().map(|&t| sequence.token_ids[t]).collect();
        let device = self.decoder.device();
        let ids = Tensor::new(sequence.token_ids.as_slice(), device)?.unsqueeze(0)?;
        let outputs: Vec<u32> = targets.iter().map(|&t| t as u32 - 1).collect();
        let outputs = Tensor::new(outputs, device)?;
        let hidden = self
            .decoder
            .hidden_states(&ids)?
            .squeeze(0)?
            .index_select(&outputs, 0)?;
        let rows_of = rows.map(Targets::from_rows);
        let values = head_values(&hidden, &labels, rows_of.as_ref(), self.geometry, self.loss)?;
        report.add(sequence.token_ids.len(), labels.len(), values.ce);
        if let Some(rows) = rows {
            report.add_teacher(labels.len(), values.kl, self.agreements(&hidden, rows)?);
        }
        Ok(hidden)
    }

    /// Positions where student and teacher prefer the same token.
    fn agreements(&self, hidden: &Tensor, rows: &Rows) -> Result<usize> {
        let teacher = rows
            .logits
            .chunks_exact(rows.k)
            .zip(rows.ids.chunks_exact(rows.k));
        let teacher: Vec<u32> = teacher
            .map(|(logits, ids)| {
                let best = (0..rows.k).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                best.map_or(u32::MAX, |best| ids[best])
            })
            .collect();
        let mut agreements = 0;
        let chunk_rows = self.loss.chunk_rows;
        for start in (0..rows.rows).step_by(chunk_rows) {
            let count = chunk_rows.min(rows.rows - start);
            let chunk = hidden.narrow(0, start, count)?.to_dtype(DType::F32)?;
            let best = self.geometry.logits(&chunk)?.argmax(1)?.to_vec1::<u32>()?;
            let pairs = best.iter().zip(&teacher[start..start + count]);
            agreements += pairs
                .filter(|(student, teacher)| student == teacher)
                .count();
        }
        Ok(agreements)
    }
}
