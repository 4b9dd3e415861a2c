//! Provides what each subcommand does: arguments to configuration to a run, and the answer printed.

use anyhow::{Context, bail};
use teacher_server::{
    cache::{self, Verdict},
    cli::{InspectArgs, MergeArgs, PrecomputeArgs, ServeArgs, Settings, VerifyArgs},
    config::Config,
    inspect::{self, Question, Report},
    precompute::{self, Outcome},
    shutdown,
};

pub fn serve(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let config = Config::validate(args)?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(Outcome::Complete);
    }
    until_signal(async |signal| teacher_server::run(config, signal).await)?;
    Ok(Outcome::Complete)
}

pub fn precompute(args: &PrecomputeArgs) -> anyhow::Result<Outcome> {
    let mut config = Config::validate(&args.serve)?;
    config.part = args.shard.clone();
    if args.serve.print_config {
        print!("{}", config.to_toml()?);
        return Ok(Outcome::Complete);
    }
    if args.dry_run {
        precompute::dry_run(&config)?;
        return Ok(Outcome::Complete);
    }
    until_signal(async |signal| precompute::run(config, signal).await)
}

pub fn inspect(args: &InspectArgs) -> anyhow::Result<Outcome> {
    let report = inspect::inspect(&Question {
        cache: args.cache.clone(),
        model: args.model.clone(),
        dtype: args.dtype.unwrap_or_default(),
        device: args.device.unwrap_or_default(),
        sample: args.sample,
    })?;
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{}", told(&report)),
    }
    Ok(Outcome::Complete)
}

pub fn verify(args: &VerifyArgs) -> anyhow::Result<Outcome> {
    let verdict = inspect::verify(&args.cache)?;
    match args.json {
        true => println!("{}", serde_json::to_string(&verdict)?),
        false => print!("{}", judged(&verdict)),
    }
    if verdict.damage.is_empty() {
        return Ok(Outcome::Complete);
    }
    let shards = verdict.damaged_shards().len();
    if !args.repair {
        bail!(
            "{shards} of {} shards are damaged; `--repair --model DIR --corpus FILE` computes them anew",
            verdict.shards
        );
    }
    let config = Config::validate(&ServeArgs {
        settings: Settings {
            model: args.model.clone(),
            corpus: args.corpus.clone(),
            cache: Some(args.cache.clone()),
            strict: Some(args.strict),
            device: args.device,
            threads: args.threads,
            json: Some(args.json),
            ..Settings::default()
        },
        ..ServeArgs::default()
    })?;
    until_signal(async |signal| inspect::repair(config, &verdict, signal).await)
}

pub fn merge(args: &MergeArgs) -> anyhow::Result<Outcome> {
    let merged = cache::merge(&args.out, &args.inputs)?;
    println!(
        "{} shards copied; {} of {} are sealed in {}",
        merged.copied,
        merged.sealed,
        merged.shards,
        args.out.display()
    );
    Ok(Outcome::Complete)
}

/// Runs something that ends in order when a signal comes.
fn until_signal<T>(
    run: impl AsyncFnOnce(std::pin::Pin<Box<dyn Future<Output = ()>>>) -> teacher_server::Result<T>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let signal = shutdown::signals()?;
        run(Box::pin(signal)).await
    });
    // Loading may still be under way; nothing of it is worth waiting for.
    runtime.shutdown_background();
    Ok(result?)
}

fn told(report: &Report) -> String {
    let mut lines = format!(
        "cache {}\n{}\nteacher {}, plan {}\n",
        report.path.display(),
        report.settings.trim_end(),
        report.model,
        report.plan_fingerprint
    );
    lines += &format!(
        "{} of {} sequences ({} tokens, {} targets, {} segments), {} of {} shards sealed\n",
        report.done,
        report.sequences,
        report.tokens,
        report.targets,
        report.segments,
        report.sealed_shards,
        report.shards
    );
    lines += &format!(
        "{:.1} MB, {:.1} bytes a token, up to {} entries a row holding {:.2} % of the mass ({} sequences sampled)\n",
        report.bytes as f64 / 1e6,
        report.bytes_per_token,
        report.entries,
        100.0 * report.covered_mass,
        report.sampled_sequences
    );
    if let Some(error) = report.sketch_error {
        lines += &format!(
            "state: a sketch, off by {:.1} % of the centred logits on held-out text\n",
            100.0 * error
        );
    }
    if let Some(fidelity) = &report.fidelity {
        lines += &format!(
            "against the whole distribution, {} rows: KL {:.2e} nats by coding, {:.4} nats with the rest spread evenly; largest entry agrees in {:.2} %; cosine of the KL gradient {:.4}\n",
            fidelity.rows,
            fidelity.kl_coding,
            fidelity.kl_full,
            100.0 * fidelity.top1_agreement,
            fidelity.gradient_cosine
        );
    }
    lines
}

fn judged(verdict: &Verdict) -> String {
    let mut lines = format!(
        "{} of {} shards are sealed: {} frames, {:.1} MB; {} frames in partial shards\n",
        verdict.sealed,
        verdict.shards,
        verdict.frames,
        verdict.bytes as f64 / 1e6,
        verdict.partial_frames
    );
    for damage in &verdict.damage {
        lines += &format!(
            "shard {}, byte {}: {}\n",
            damage.shard, damage.offset, damage.reason
        );
    }
    lines
}
