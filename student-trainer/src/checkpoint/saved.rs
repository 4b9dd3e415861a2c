//! Provides what a run goes on from, a checkpoint or what a process has handed over, to whoever restores it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use candle_core::{DType, Device, Tensor, Var};

use super::{Checkpoint, RunState, STATE_FILE};
use crate::{Error, Result};

/// The state of a run, and tensors by the names of a checkpoint's files.
pub(crate) trait Saved {
    /// How far the run was.
    fn state(&self) -> &RunState;

    /// The tensors of one file, on the host.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    fn tensors(&self, name: &str) -> Result<BTreeMap<String, Tensor>>;

    /// What to call a file in messages.
    fn path(&self, name: &str) -> PathBuf;

    /// For a state that does not fit the run.
    fn refuse(&self, reason: String) -> Error {
        Error::file(&self.path(STATE_FILE), reason)
    }

    /// Fills `parameters` with the values in one file.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape, by name.
    fn restore(&self, name: &str, parameters: &[(String, Var)]) -> Result<()> {
        let tensors = self.tensors(name)?;
        for (parameter, var) in parameters {
            let fault = |what: String| Error::file(&self.path(name), what);
            let Some(tensor) = tensors.get(parameter) else {
                return Err(fault(format!("there is no tensor {parameter}")));
            };
            if tensor.dims() != var.dims() {
                return Err(fault(format!(
                    "{parameter} has shape {:?}, the student needs {:?}",
                    tensor.dims(),
                    var.dims()
                )));
            }
            var.set(&tensor.to_device(var.device())?.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }
}

impl Saved for Checkpoint {
    fn state(&self) -> &RunState {
        &self.state
    }

    fn tensors(&self, name: &str) -> Result<BTreeMap<String, Tensor>> {
        let path = self.path(name);
        if !self.holds(name) {
            let reason = "is not among the files that state.toml lists";
            return Err(Error::file(&path, reason));
        }
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        // The files were checked when the checkpoint was opened; what counts is what is used.
        let digest = blake3::hash(&bytes).to_hex();
        if self.state.files.get(name).map(String::as_str) != Some(digest.as_str()) {
            return Err(Error::file(&path, "is not as it was written"));
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| Error::file(&path, e))?;
        Ok(tensors.into_iter().collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
