//! Provides a student with its adapter, which can be taken off and put on again: what base and adapter write is compared with one
//! model in memory.

use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use distill_hub::Wanted;
use distill_model::Decoder;
use distill_text::ChatTemplateKwargs;
use toml::Table;

use crate::{
    Error, Result,
    config::{FILE_BYTES_MAX, Quantize},
    files::read_toml,
    run::{
        ADAPTER_CONFIG_FILE, AdapterConfig, CONFIG_FILE, load_adapter, run_above, warn_of_unused,
    },
    shutdown::Shutdown,
    student::{Place, StudentFiles, located},
};

/// Opens the student that is named, or the base that the adapter names, whose chat template has these variables; and says where
/// the adapter is, which may be one on the hub.
///
/// # Errors
/// Neither is named, or what is named cannot be opened.
pub(crate) fn find_student(
    student: &Path,
    adapter: Option<&Path>,
    kwargs: &ChatTemplateKwargs,
    shutdown: &Shutdown,
) -> Result<(StudentFiles, Option<PathBuf>)> {
    let adapter = adapter.map(|adapter| located(adapter, Wanted::Adapter, shutdown));
    let adapter = adapter.transpose()?;
    let mut files = find_files(student, adapter.as_deref(), shutdown)?;
    files.tokenizer.set_chat_template_kwargs(kwargs);
    Ok((files, adapter))
}

fn find_files(student: &Path, adapter: Option<&Path>, shutdown: &Shutdown) -> Result<StudentFiles> {
    if !student.as_os_str().is_empty() {
        return StudentFiles::find(student, shutdown);
    }
    let Some(adapter) = adapter else {
        return Err(Error::Config(
            "student: name the model with --student DIR, or an adapter that names its base with --adapter DIR"
                .into(),
        ));
    };
    let file = adapter.join(ADAPTER_CONFIG_FILE);
    let config = AdapterConfig::read(adapter)?;
    let base = config.base_model_name_or_path;
    let base = base.filter(|base| !base.is_empty()).ok_or_else(|| {
        let problem = "base_model_name_or_path: names no base; name it with --student DIR";
        Error::file(&file, problem)
    })?;
    let base = match config.revision {
        Some(revision) if !Path::new(&base).exists() => format!("{base}@{revision}"),
        _ => base,
    };
    StudentFiles::find(&PathBuf::from(&base), shutdown).map_err(|error| {
        if error.is_stop() {
            return error;
        }
        let problem = format!(
            "base_model_name_or_path: the base `{base}` cannot be opened: {error}; where it is somewhere else now, name it with \
             --student DIR"
        );
        Error::file(&file, problem)
    })
}

/// What makes an adapter add nothing: the values of every B, which are kept here while they are zero.
pub(crate) struct Switch(Vec<(Var, Tensor)>);

impl Switch {
    /// Takes the adapter off, or puts it on again.
    ///
    /// # Errors
    /// A tensor error.
    pub fn put(&self, on: bool) -> Result<()> {
        for (var, value) in &self.0 {
            let value = if on { value } else { &value.zeros_like()? };
            var.set(value)?;
        }
        Ok(())
    }
}

/// Reads the weights, with the adapter where there is one. Nobody has to say again how they are held.
///
/// # Errors
/// Weights or an adapter that cannot be used.
pub(crate) fn load(
    files: &StudentFiles,
    adapter: Option<&Path>,
    quantize: Option<Quantize>,
    place: &Place,
) -> Result<(Decoder, Option<Switch>)> {
    let result = adapter.unwrap_or(Path::new(&files.base));
    let quantize = quantize.or_else(|| as_trained(result));
    let quantize = quantize.unwrap_or_default();
    let Some(directory) = adapter else {
        return Ok((files.load(quantize, place, None)?, None));
    };
    let adapter = AdapterConfig::read(directory)?;
    let lora = adapter.lora();
    warn_of_unused(directory, &lora, &files.config)?;
    let decoder = files.load(quantize, place, Some(lora))?;
    let parameters = decoder.parameters();
    load_adapter(directory, &parameters)?;
    let raised = parameters.into_iter();
    let raised = raised.filter(|(name, _)| name.ends_with(".lora_B.weight"));
    let kept = raised.map(|(_, var)| Ok((var.clone(), var.copy()?)));
    Ok((decoder, Some(Switch(kept.collect::<Result<_>>()?))))
}

/// How the run held its weights that `result` lies in.
fn as_trained(result: &Path) -> Option<Quantize> {
    let path = run_above(result)?.join(CONFIG_FILE);
    // What cannot be read as a run's settings is no run's, and tells nothing.
    let settings: Table = read_toml(&path, FILE_BYTES_MAX).ok()?;
    let word = |key: &str| settings.get(key)?.as_str();
    Some(match (word("tune")?, word("quantize")?) {
        ("full", _) | (_, "none") => Quantize::None,
        _ => Quantize::Nf4,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_run_s_results_are_held_as_the_run_held_them() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = dir.path().join("checkpoints/best/adapter");
        fs::create_dir_all(&adapter).unwrap();
        assert_eq!(as_trained(&adapter), None);
        for (settings, expected) in [
            ("tune = \"lora\"\nquantize = \"none\"", Some(Quantize::None)),
            ("tune = \"lora\"\nquantize = \"nf4\"", Some(Quantize::Nf4)),
            ("tune = \"full\"\nquantize = \"nf4\"", Some(Quantize::None)),
            ("title = \"somebody's site\"", None),
            ("no TOML", None),
        ] {
            fs::write(dir.path().join(CONFIG_FILE), settings).unwrap();
            assert_eq!(as_trained(&adapter), expected, "{settings}");
        }
        assert_eq!(as_trained(&dir.path().join("missing")), None);
    }
}
