//! Provides the `losses` command: any loss setting on dense logits from files, to check it against other implementations.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::{
    Error, Result,
    config::{loss_keys::every_loss_key, settings::settings},
    loss::{LossConfig, LossValues, dense_loss},
    run::write_atomically,
};

settings! {
    /// Everything `losses` can be told.
    pub struct LossesConfig {
        /// Safetensors file with the student's `logits [N, V]`, and optionally `labels [N]`.
        student: PathBuf = PathBuf::new(),
        /// Safetensors file with the teacher's `logits [M, V]`.
        teacher: PathBuf = PathBuf::new(),
        /// Loss settings to start from: default, or literal (the method's formula word for word).
        preset: String = "default".to_owned(),
        /// Cut the teacher to its K largest logits first, as a capture does; unset: all of them.
        top_k: Option<usize> = None,
        /// Safetensors file for `grad_ot` and `grad_total`, `[N, V]` each.
        grad_out: Option<PathBuf> = None,
        /// Print a JSON object.
        json: bool = false,
    }
    sections {
        /// The loss.
        loss: LossConfig = every_loss_key,
    }
}

/// What the losses are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossReport {
    total: f64,
    ce: f64,
    kl: f64,
    ot: f64,
    iterations: usize,
    marginal_error: f64,
    converged: bool,
    /// Whether there were labels; without them `ce` is 0 and not part of `total`.
    labels: bool,
}

/// Evaluates the losses as `config` says.
///
/// # Errors
/// A file or tensor that cannot be used, or settings that these tensors cannot feed.
pub fn run(config: &LossesConfig) -> Result<LossReport> {
    for (name, path) in [("student", &config.student), ("teacher", &config.teacher)] {
        if path.as_os_str().is_empty() {
            return Err(Error::Config(format!(
                "{name}: name a safetensors file with --{name}"
            )));
        }
    }
    config.loss.validate()?;
    let student = Dense::read(&config.student)?;
    let teacher = Dense::read(&config.teacher)?;
    let labels = student.labels.or(teacher.labels);
    let loss = dense_loss(
        &student.logits,
        &teacher.logits,
        labels.as_deref(),
        config.top_k,
        &config.loss,
    )?;
    if let Some(path) = &config.grad_out {
        let gradients =
            BTreeMap::from([("grad_ot", &loss.grad_ot), ("grad_total", &loss.grad_total)]);
        write_atomically(path, &safetensors::serialize(gradients, None)?)?;
    }
    Ok(LossReport::new(&loss.values, labels.is_some()))
}

/// Tensors of one file.
struct Dense {
    logits: Tensor,
    labels: Option<Vec<u32>>,
}

impl Dense {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, e.to_string()))?;
        let logits = file.tensor("logits").map_err(|_| {
            let names = file.names().join(", ");
            Error::file(
                path,
                format!("there is no tensor `logits` (it holds: {names})"),
            )
        })?;
        if logits.shape().len() != 2 {
            return Err(Error::file(
                path,
                format!("`logits` has shape {:?}, expected [N, V]", logits.shape()),
            ));
        }
        use candle_core::safetensors::Load;
        let labels = file
            .tensor("labels")
            .ok()
            .map(|view| labels(path, &view))
            .transpose()?;
        Ok(Self {
            logits: logits.load(&Device::Cpu)?,
            labels,
        })
    }
}

/// Labels of any integer type.
fn labels(path: &Path, view: &safetensors::tensor::TensorView<'_>) -> Result<Vec<u32>> {
    let size = match view.dtype() {
        Dtype::I64 | Dtype::U64 => 8,
        Dtype::I32 | Dtype::U32 => 4,
        other => {
            return Err(Error::file(
                path,
                format!("`labels` is {other:?}, expected an integer type"),
            ));
        }
    };
    let numbers = view.data().chunks_exact(size).map(|bytes| {
        // Little-endian; what a negative number turns into is no u32.
        let wide = bytes
            .iter()
            .rev()
            .fold(0u64, |number, &byte| (number << 8) | u64::from(byte));
        let negative_i32 = view.dtype() == Dtype::I32 && wide > i32::MAX as u64;
        u32::try_from(wide).ok().filter(|_| !negative_i32)
    });
    numbers
        .collect::<Option<Vec<u32>>>()
        .ok_or_else(|| Error::file(path, "`labels` holds numbers that are no token ids"))
}

impl LossReport {
    fn new(values: &LossValues, labels: bool) -> Self {
        Self {
            total: values.total,
            ce: values.ce,
            kl: values.kl,
            ot: values.ot,
            iterations: values.report.iterations,
            marginal_error: values.report.marginal_error,
            converged: values.report.converged,
            labels,
        }
    }
}

impl fmt::Display for LossReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "total  {:.6}", self.total)?;
        writeln!(
            f,
            "ce     {:.6}{}",
            self.ce,
            if self.labels { "" } else { " (no labels)" }
        )?;
        writeln!(f, "kl     {:.6}", self.kl)?;
        writeln!(f, "ot     {:.6}", self.ot)?;
        write!(
            f,
            "solver {} iterations, marginal error {:.1e}, {}",
            self.iterations,
            self.marginal_error,
            if self.converged {
                "converged"
            } else {
                "not converged"
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, tensors: &[(&str, Tensor)]) {
        let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
        fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    }

    #[test]
    fn losses_and_gradients_come_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        let logits = Tensor::randn(0f32, 1.0, (4, 9), &Device::Cpu).unwrap();
        let labels = Tensor::new(&[0i64, 8, 3, 1], &Device::Cpu).unwrap();
        write(
            &path("student"),
            &[("logits", logits.clone()), ("labels", labels)],
        );
        write(&path("teacher"), &[("logits", logits)]);
        let config = LossesConfig {
            student: path("student"),
            teacher: path("teacher"),
            grad_out: Some(path("grad")),
            ..LossesConfig::default()
        };
        let report = run(&config).unwrap();
        // The same logits on both sides: no divergence.
        assert!(
            report.labels && report.ce > 0.0 && report.kl.abs() < 1e-6,
            "{report:?}"
        );
        let bytes = fs::read(path("grad")).unwrap();
        let grad = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(grad.tensor("grad_total").unwrap().shape(), [4, 9]);
        assert_eq!(grad.tensor("grad_ot").unwrap().shape(), [4, 9]);
    }

    #[test]
    fn wrong_files_say_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let config = LossesConfig {
            student: path.clone(),
            teacher: path.clone(),
            ..LossesConfig::default()
        };
        assert!(
            run(&config)
                .unwrap_err()
                .to_string()
                .contains("cannot read")
        );
        write(
            &path,
            &[("other", Tensor::new(&[1f32], &Device::Cpu).unwrap())],
        );
        assert!(
            run(&config)
                .unwrap_err()
                .to_string()
                .contains("it holds: other")
        );
        let negative = Tensor::new(&[-1i64], &Device::Cpu).unwrap();
        let logits = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        write(&path, &[("logits", logits), ("labels", negative)]);
        assert!(
            run(&config)
                .unwrap_err()
                .to_string()
                .contains("no token ids")
        );
    }
}
