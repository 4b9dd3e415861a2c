//! Provides what is trained, adapters or the whole model, as checkpoints and results hold it.

use std::{collections::BTreeMap, path::PathBuf};

use candle_core::{Tensor, Var};

use crate::{
    Result,
    checkpoint::{Content, Saved},
    config::{TrainConfig, Tune},
    files::{self, write_atomically},
    loss::HiddenProjection,
    pretrain::save_model,
    run::{
        ADAPTER_CONFIG_FILE, ADAPTER_DIRECTORY, ADAPTER_WEIGHTS_FILE, AdapterConfig,
        PROJECTION_FILE, RunDirectory, save_adapter, save_projections,
    },
    student::StudentFiles,
};

const MODEL_FILE: &str = "model.safetensors";

/// The trained parameters with everything that makes files of them loadable.
pub(super) struct Tuned<'a> {
    pub files: &'a StudentFiles,
    /// Of the adapters; none where every weight is trained.
    pub adapter: Option<AdapterConfig>,
    pub parameters: Vec<(String, Var)>,
    pub projections: &'a [HiddenProjection],
}

impl Tuned<'_> {
    /// The name of the weights' file in a checkpoint.
    pub fn weights_file(is_adapter: bool) -> &'static str {
        if is_adapter {
            ADAPTER_WEIGHTS_FILE
        } else {
            MODEL_FILE
        }
    }

    /// The name of a result's directory.
    pub fn result_name(tune: Tune) -> &'static str {
        match tune {
            Tune::Lora => ADAPTER_DIRECTORY,
            Tune::Full => "model",
        }
    }

    /// What a checkpoint holds: a directory that PEFT, or transformers, can load.
    pub fn checkpoint_files(&self) -> Result<Vec<(&'static str, Content)>> {
        let weights = Content::Tensors(tensors(&self.parameters));
        let mut files = match &self.adapter {
            Some(config) => vec![
                (ADAPTER_WEIGHTS_FILE, weights),
                (ADAPTER_CONFIG_FILE, Content::Bytes(config.to_json()?)),
            ],
            None => {
                let config = self.config_json()?.to_vec();
                let tokenizer = self.files.tokenizer.files().into_iter();
                let mut files = vec![
                    (MODEL_FILE, weights),
                    ("config.json", Content::Bytes(config)),
                ];
                files.extend(tokenizer.map(|(name, path)| (name, Content::Copy(path))));
                files
            }
        };
        if !self.projections.is_empty() {
            let projections = tensors(&self.saved_projections());
            files.push((PROJECTION_FILE, Content::Tensors(projections)));
        }
        Ok(files)
    }

    /// The student's `config.json` as it was when the run began.
    fn config_json(&self) -> Result<&[u8]> {
        Ok(self.files.weights()?.config_bytes().unwrap_or_default())
    }

    /// Takes all values from a checkpoint, or as they were carried over.
    pub fn restore(&self, saved: &dyn Saved) -> Result<()> {
        saved.restore(Self::weights_file(self.adapter.is_some()), &self.parameters)?;
        if self.projections.is_empty() {
            return Ok(());
        }
        saved.restore(PROJECTION_FILE, &self.saved_projections())
    }

    fn saved_projections(&self) -> Vec<(String, Var)> {
        let projections = self.projections.iter();
        projections.flat_map(HiddenProjection::saved).collect()
    }

    /// Writes the result of a run: `adapter`, or `model`.
    pub fn publish(&self, config: &TrainConfig, run: &RunDirectory) -> Result<PathBuf> {
        let directory = run.join(Self::result_name(config.tune));
        match &self.adapter {
            Some(adapter) => save_adapter(&directory, adapter, &self.parameters)?,
            None => {
                files::create_directory(&directory)?;
                write_atomically(&directory.join("config.json"), self.config_json()?)?;
                save_model(&directory, &self.parameters, config.save_dtype.for_files())?;
            }
        }
        if !self.projections.is_empty() {
            save_projections(&directory, self.projections)?;
        }
        self.files.tokenizer.copy_to(&directory)?;
        Ok(directory)
    }
}

fn tensors(parameters: &[(String, Var)]) -> BTreeMap<String, Tensor> {
    let tensors = parameters.iter();
    tensors
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect()
}
