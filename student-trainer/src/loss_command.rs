//! Provides the `losses` command: any loss setting on dense logits from files, to check it against other implementations.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use distill_program::settings;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::{
    Error, Result,
    config::loss_keys::every_loss_key,
    files,
    loss::{Convergence, DenseLoss, LossConfig, dense_loss},
};

/// Bytes of a file of logits, which is held in memory.
const TENSORS_BYTES_MAX: u64 = 1 << 36;
/// Parts of a loss: CE, KL, reverse KL, JSD and transport.
const PARTS: usize = 5;

settings! {
    /// Everything `losses` can be told.
    pub struct LossesConfig: once {
        group "Logits and output":
        /// Safetensors file with the student's `logits [N, V]`.
        ///
        /// `labels [N]` may be beside them.
        student: PathBuf = PathBuf::new(), value: "FILE", essential: true;
        /// Safetensors file with the teacher's `logits [M, V]`.
        teacher: PathBuf = PathBuf::new(), value: "FILE", essential: true;
        group "Settings":
        /// Loss settings to start from: default, or literal (the method's formula word for word).
        preset: String = "default".to_owned();
        group "Logits and output":
        /// Cut the teacher to its K largest logits first; unset: all of them.
        ///
        /// As a capture does.
        top_k: Option<usize> = None, essential: true;
        /// Safetensors file for `grad_ot` and `grad_total`, `[N, V]` each.
        grad_out: Option<PathBuf> = None, value: "FILE", essential: true;
        /// Print a JSON object.
        json: bool = false, essential: true;
    }
    sections {
        /// The loss.
        loss: LossConfig = every_loss_key;
    }
}

/// What the losses are, without their weights except in `total`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossReport {
    /// The weighted sum of the parts that are there.
    total: f64,
    ce: Option<f64>,
    kl: Option<f64>,
    reverse_kl: Option<f64>,
    jsd: Option<f64>,
    ot: Option<f64>,
    /// Of the parts that are not there, why.
    absent: BTreeMap<&'static str, String>,
    /// How the solver fared, where there is transport.
    #[serde(flatten)]
    solver: Option<Convergence>,
    /// Whether there are labels that belong to the student's rows.
    labels: bool,
}

/// Evaluates the losses as `config` says: every part that these tensors can feed.
///
/// # Errors
/// A file or tensor that cannot be used, settings that make no sense, or tensors that feed no part.
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
    let labels = labels_of_rows(&student, &teacher)?;
    let loss = dense_loss(
        &student.logits,
        &teacher.logits,
        labels.as_ref().ok().copied(),
        config.top_k,
        &config.loss,
    )?;
    let report = LossReport::new(&loss, labels.err());
    if report.absent.len() == PARTS {
        let reasons: Vec<String> = report.absent.into_values().collect();
        return Err(Error::Config(format!(
            "losses: there is nothing to compute: {}",
            reasons.join("; ")
        )));
    }
    if let Some(path) = &config.grad_out {
        let grad_ot = loss.grad_ot.iter().map(|gradient| ("grad_ot", gradient));
        let gradients: BTreeMap<_, _> = grad_ot.chain([("grad_total", &loss.grad_total)]).collect();
        files::write_tensors(path, gradients)?;
    }
    Ok(report)
}

/// The labels of the student's rows, from either file, or why there are none.
fn labels_of_rows<'a>(
    student: &'a Dense,
    teacher: &'a Dense,
) -> Result<std::result::Result<&'a [u32], String>> {
    let (n, m) = (student.logits.dim(0)?, teacher.logits.dim(0)?);
    Ok(match (&student.labels, &teacher.labels) {
        (Some(labels), _) => Ok(labels),
        (None, Some(labels)) if n == m => Ok(labels),
        (None, Some(_)) => Err(format!(
            "the labels are of the teacher's {m} rows, and the student has {n}; put `labels [N]` beside the student's logits"
        )),
        (None, None) => Err("there is no tensor `labels [N]` in either file".to_owned()),
    })
}

/// Tensors of one file.
struct Dense {
    logits: Tensor,
    labels: Option<Vec<u32>>,
}

impl Dense {
    fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path, TENSORS_BYTES_MAX)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, e))?;
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
    fn new(loss: &DenseLoss, ce_absent: Option<String>) -> Self {
        let values = &loss.values;
        let present = |value: f64, absent: &Option<String>| absent.is_none().then_some(value);
        let reasons = [
            ("ce", &ce_absent),
            ("kl", &loss.kl_absent),
            ("reverse_kl", &loss.kl_absent),
            ("jsd", &loss.kl_absent),
            ("ot", &loss.ot_absent),
        ];
        Self {
            total: values.total,
            ce: present(values.ce, &ce_absent),
            kl: present(values.kl, &loss.kl_absent),
            reverse_kl: present(values.reverse_kl, &loss.kl_absent),
            jsd: present(values.jsd, &loss.kl_absent),
            ot: present(values.ot, &loss.ot_absent),
            solver: loss
                .ot_absent
                .is_none()
                .then_some(values.report.convergence),
            labels: ce_absent.is_none(),
            absent: reasons
                .into_iter()
                .filter_map(|(part, reason)| Some((part, reason.clone()?)))
                .collect(),
        }
    }
}

impl fmt::Display for LossReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<11}{:.6}", "total", self.total)?;
        for (part, value) in [
            ("ce", self.ce),
            ("kl", self.kl),
            ("reverse_kl", self.reverse_kl),
            ("jsd", self.jsd),
            ("ot", self.ot),
        ] {
            match (value, self.absent.get(part)) {
                (Some(value), _) => write!(f, "\n{part:<11}{value:.6}")?,
                (None, Some(reason)) => write!(f, "\n{part:<11}none: {reason}")?,
                (None, None) => {}
            }
        }
        let Some(solver) = &self.solver else {
            return Ok(());
        };
        write!(
            f,
            "\n{:<11}{} iterations, marginal error {:.1e}, {}",
            "solver",
            solver.iterations,
            solver.marginal_error,
            if solver.converged {
                "converged"
            } else {
                "not converged"
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
            report.labels && report.ce.unwrap() > 0.0 && report.kl.unwrap().abs() < 1e-6,
            "{report:?}"
        );
        assert!(report.absent.is_empty());
        let bytes = fs::read(path("grad")).unwrap();
        let grad = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(grad.tensor("grad_total").unwrap().shape(), [4, 9]);
        assert_eq!(grad.tensor("grad_ot").unwrap().shape(), [4, 9]);
    }

    #[test]
    fn what_can_be_computed_was_refused_for_what_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let logits = |rows| Tensor::randn(0f32, 1.0, (rows, 9), &Device::Cpu).unwrap();
        let labels = |rows: i64| Tensor::arange(0, rows, &Device::Cpu).unwrap();
        let student = logits(5);
        write(
            &path("labelled"),
            &[("logits", student.clone()), ("labels", labels(5))],
        );
        write(&path("plain"), &[("logits", student)]);
        write(
            &path("teacher"),
            &[("logits", logits(3)), ("labels", labels(3))],
        );
        let losses = |student: &str, change: &dyn Fn(&mut LossesConfig)| {
            let mut config = LossesConfig {
                student: path(student),
                teacher: path("teacher"),
                grad_out: Some(path("grad")),
                ..LossesConfig::default()
            };
            change(&mut config);
            run(&config)
        };
        // Five positions beside three: no KL, and nothing of it in the total.
        let report = losses("labelled", &|c| c.loss.ot_weight = 2.0).unwrap();
        let (ce, ot) = (report.ce.unwrap(), report.ot.unwrap());
        assert!((report.total - (ce + 2.0 * ot)).abs() < 1e-9, "{report:?}");
        let json = serde_json::json!(report);
        assert!(
            json["kl"].is_null() && json["iterations"].is_u64(),
            "{json}"
        );
        let reason = json["absent"]["kl"].as_str().unwrap();
        assert!(reason.contains("5 of the student and 3 of the teacher"));
        assert!(report.to_string().contains("kl         none: KL pairs"));

        // The teacher's labels are of other rows.
        let report = losses("plain", &|_| {}).unwrap();
        assert_eq!((report.ce, report.kl, report.labels), (None, None, false));
        assert!(report.absent["ce"].contains("teacher's 3 rows"));

        // A cut teacher feeds no cosine of whole rows; the rest is there.
        let cut = |c: &mut LossesConfig| {
            c.top_k = Some(4);
            c.loss.align.cost = crate::loss::Cost::SoftmaxSimilarity;
            c.loss.align.similarity = crate::loss::Similarity::Cosine;
        };
        let report = losses("labelled", &cut).unwrap();
        assert!(report.ce.is_some() && report.ot.is_none() && report.solver.is_none());
        assert!(report.absent["ot"].contains("similarity"), "{report:?}");
        let bytes = fs::read(path("grad")).unwrap();
        let gradients = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(gradients.names(), ["grad_total"]);

        // Nor are there hidden states.
        let states = |c: &mut LossesConfig| c.loss.align.cost = crate::loss::Cost::Hidden;
        let report = losses("labelled", &states).unwrap();
        assert!(report.absent["ot"].contains("hidden states"), "{report:?}");

        let message = losses("plain", &cut).unwrap_err().to_string();
        assert!(message.contains("nothing to compute"), "{message}");
    }

    #[test]
    fn a_divergence_without_weight_was_reported_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["student", "teacher"] {
            let logits = Tensor::randn(0f32, 1.0, (4, 9), &Device::Cpu).unwrap();
            write(&path(name), &[("logits", logits)]);
        }
        let losses = |kl_weight: f64| {
            let mut config = LossesConfig {
                student: path("student"),
                teacher: path("teacher"),
                ..LossesConfig::default()
            };
            config.loss.kl_weight = kl_weight;
            run(&config).unwrap()
        };
        let (with, without) = (losses(1.0), losses(0.0));
        assert_eq!(with.kl, without.kl);
        assert!(
            without.kl.unwrap() > 0.1 && without.total == 0.0,
            "{without:?}"
        );
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
