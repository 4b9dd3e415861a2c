//! Provides what Prometheus reads of a teacher: what it has computed, sent and refused, who waits, and whose turn the device is.

use distill_program::monitor;
use metrics::{counter, gauge};

use crate::{
    Error, Result,
    config::Config,
    production::{Pressure, Production},
    report::Reporter,
    service::Service,
};

/// Answers at the address of the settings, if they name one, about what the service has loaded.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn start(config: &Config, reporter: Reporter, service: Service) -> Result<()> {
    let Some(address) = config.metrics_addr else {
        return Ok(());
    };
    let look = move || {
        let engine = service.engine();
        engine.map(|engine| look(&engine.production)).is_ok()
    };
    let at = monitor::serve(address, look)
        .map_err(|error| Error::config("metrics_addr", error.to_string()))?;
    reporter.metrics(at);
    Ok(())
}

fn look(production: &Production) {
    let totals = production.totals();
    counter!("ot_distill_teacher_tokens_total").absolute(totals.tokens);
    counter!("ot_distill_teacher_frame_bytes_total").absolute(totals.bytes);
    counter!("ot_distill_teacher_sequences_total").absolute(production.sequences_computed());
    gauge!("ot_distill_teacher_compute_seconds").set(totals.compute_seconds);
    gauge!("ot_distill_teacher_sequences_kept").set(production.sequences_done() as f64);
    let Pressure {
        readers,
        scores,
        answers,
        is_lent,
        holders_waiting,
    } = production.pressure();
    gauge!("ot_distill_teacher_readers").set(readers as f64);
    gauge!("ot_distill_teacher_scores_waiting").set(scores as f64);
    gauge!("ot_distill_teacher_answers_waiting").set(answers as f64);
    gauge!("ot_distill_teacher_device_lent").set(f64::from(is_lent));
    gauge!("ot_distill_teacher_holders_waiting").set(holders_waiting as f64);
}

/// A frame goes to a reader; `was_kept` where nobody had to compute it first.
pub(crate) fn sent(bytes: usize, was_kept: bool) {
    let kept = if was_kept { "true" } else { "false" };
    counter!("ot_distill_teacher_frames_sent_total", "kept" => kept).increment(1);
    counter!("ot_distill_teacher_bytes_sent_total").increment(bytes as u64);
}

/// A call is answered with an error of this kind.
pub(crate) fn refused(kind: &'static str) {
    counter!("ot_distill_teacher_errors_total", "kind" => kind).increment(1);
}
