//! Provides what each subcommand does: arguments to configuration to a run, and the answer printed.

use std::fmt::Display;

use anyhow::{Context, bail};
use distill_program::{
    console,
    units::{Bytes, Digits},
};
use distill_proto::fingerprint::short;
use teacher_server::{
    cache::{self, Verdict},
    cli::{InspectArgs, MergeArgs, PrecomputeArgs, ServeArgs, VerifyArgs},
    config::Config,
    inspect::{self, Report},
    precompute,
    shutdown::{Outcome, Shutdown},
};

pub fn serve(args: &ServeArgs, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let config = resolve(args, "serve")?;
    if args.file.print_config {
        print(config.to_toml()?)?;
        return Ok(Outcome::Complete);
    }
    // Nothing of a server is cut short by the end that it is asked for.
    until_stopped(shutdown, async |stopped| {
        teacher_server::run(config, stopped).await
    })?;
    Ok(Outcome::Complete)
}

pub fn precompute(args: &PrecomputeArgs, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let mut config = resolve(&args.serve, "precompute")?;
    config.part = args.shard.clone();
    if args.serve.file.print_config {
        print(config.to_toml()?)?;
        return Ok(Outcome::Complete);
    }
    if args.dry_run {
        precompute::dry_run(&config)?;
        return Ok(Outcome::Complete);
    }
    until_stopped(shutdown, async |stopped| {
        precompute::run(config, stopped).await
    })
}

pub fn inspect(args: &InspectArgs, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let report = inspect::inspect(&args.question()?, &|| shutdown.is_requested())?;
    if args.json {
        print(serde_json::to_string(&report)? + "\n")?;
    } else {
        print(told(&report))?;
    }
    Ok(shutdown.outcome(report.complete))
}

pub fn verify(args: &VerifyArgs, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let verdict = inspect::verify(&args.cache, &|| shutdown.is_requested())?;
    if args.json {
        print(serde_json::to_string(&verdict)? + "\n")?;
    } else {
        print(judged(&verdict))?;
    }
    let is_stopped = !verdict.complete && verdict.missing == 0;
    if is_stopped || verdict.damage.is_empty() {
        return Ok(if verdict.complete {
            Outcome::Complete
        } else {
            Outcome::Interrupted
        });
    }
    let shards = verdict.damaged_shards().len();
    if !args.repair {
        bail!(
            "{shards} of {} shards are damaged; `--repair --model DIR --corpus FILE` computes them anew",
            verdict.shards
        );
    }
    let config = args.repair()?;
    until_stopped(shutdown, async |stopped| {
        inspect::repair(config, &verdict, stopped).await
    })
}

pub fn merge(args: &MergeArgs, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let merged = cache::merge(&args.out, &args.inputs, &|| shutdown.is_requested())?;
    let out = args.out.display();
    let mut done = format!("{} shards copied", merged.copied);
    if merged.listed > 0 {
        done += &format!(", {} listed where they are, which must stay", merged.listed);
    }
    if !merged.complete {
        print(format_args!(
            "stopped with {done}, to {out}; the same command goes on\n"
        ))?;
        return Ok(Outcome::Interrupted);
    }
    print(format_args!(
        "{done}; {} of {} are sealed in {out}\n",
        merged.sealed, merged.shards,
    ))?;
    Ok(Outcome::Complete)
}

/// The settings; says which were set to no effect.
fn resolve(args: &ServeArgs, command: &str) -> anyhow::Result<Config> {
    let resolved = args.resolve(command)?;
    for line in &resolved.idle {
        tracing::warn!("{line}");
    }
    Ok(resolved.config)
}

fn print(result: impl Display) -> anyhow::Result<()> {
    console::print(result).context("cannot write to standard output")
}

/// Runs something that ends in order when it is asked to.
fn until_stopped<T>(
    shutdown: &Shutdown,
    run: impl AsyncFnOnce(std::pin::Pin<Box<dyn Future<Output = ()>>>) -> teacher_server::Result<T>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let shutdown = shutdown.clone();
    let result = runtime.block_on(run(Box::pin(async move { shutdown.requested().await })));
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
        short(&report.plan_fingerprint)
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
    if report.not_in_corpus > 0 {
        lines += &format!(
            "{} of these sequences are not in the corpus any more: they stay here and are not served\n",
            report.not_in_corpus
        );
    }
    lines += &format!(
        "{}, {} bytes a token, up to {} entries a row holding {:.2} % of the mass ({} sequences sampled)\n",
        Bytes(report.bytes),
        Digits(report.bytes_per_token),
        report.entries,
        100.0 * report.covered_mass,
        report.sampled_sequences
    );
    let pairs = report.pairs;
    if pairs.sequences > 0 {
        lines += &format!(
            "{} pairs, {} of them share nothing; {} bytes are shared\n",
            pairs.sequences, pairs.without_shared, pairs.shared_bytes
        );
    }
    if let Some(pair) = &report.pair {
        lines += &pair.lines();
    }
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
    if !report.complete {
        lines += "stopped before the whole sample was computed anew\n";
    }
    lines
}

fn judged(verdict: &Verdict) -> String {
    let mut lines = format!(
        "{} of {} shards are sealed: {} frames, {}; {} frames in partial shards\n",
        verdict.sealed,
        verdict.shards,
        verdict.frames,
        Bytes(verdict.bytes),
        verdict.partial_frames
    );
    if verdict.missing > 0 {
        lines += &format!(
            "{} shards are missing; `teacher-server precompute` with the same settings computes them\n",
            verdict.missing
        );
    } else if !verdict.complete {
        lines += "stopped before every shard was read\n";
    }
    for damage in &verdict.damage {
        lines += &format!(
            "shard {}, byte {}: {}\n",
            damage.shard, damage.offset, damage.reason
        );
    }
    lines
}
