//! Provides the tensors of a run that is to go on: from a checkpoint's files, or carried over while the device is another's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, Var};

use super::{Checkpoint, Content};
use crate::{Error, Result};

/// Tensors by the names of a checkpoint's files.
pub(crate) trait Saved {
    /// The tensors of one file, on the host.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    fn tensors(&self, name: &str) -> Result<BTreeMap<String, Tensor>>;

    /// What to call a file in messages.
    fn path(&self, name: &str) -> PathBuf;

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
        self.directory().join(name)
    }
}

/// What a checkpoint would hold, in host memory.
pub(crate) struct Carried(Vec<(&'static str, Content)>);

impl Carried {
    /// Takes the tensors of these files off the device.
    ///
    /// # Errors
    /// A tensor error.
    pub fn of(files: Vec<(&'static str, Content)>) -> Result<Self> {
        let on_host =
            |(name, tensor): (String, Tensor)| Ok((name, tensor.detach().to_device(&Device::Cpu)?));
        let file = |(name, content)| {
            let content = match content {
                Content::Tensors(tensors) => {
                    let tensors = tensors.into_iter().map(on_host);
                    Content::Tensors(tensors.collect::<Result<_>>()?)
                }
                other => other,
            };
            Ok((name, content))
        };
        Ok(Self(files.into_iter().map(file).collect::<Result<_>>()?))
    }

    /// To be written as a checkpoint after all.
    pub fn into_files(self) -> Vec<(&'static str, Content)> {
        self.0
    }
}

impl Saved for Carried {
    fn tensors(&self, name: &str) -> Result<BTreeMap<String, Tensor>> {
        match self.0.iter().find(|(file, _)| *file == name) {
            Some((_, Content::Tensors(tensors))) => Ok(tensors.clone()),
            _ => Err(Error::file(&self.path(name), "was not carried over")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("host memory").join(name)
    }
}
