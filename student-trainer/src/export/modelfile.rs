//! Provides the `Modelfile` beside a GGUF file, from which `ollama create` makes a model.

use std::fmt;

/// The file's name.
pub(super) const NAME: &str = "Modelfile";

/// What is in it.
pub(super) struct Modelfile<'a> {
    /// The model.
    pub from: String,
    /// The adapter over it.
    pub adapter: Option<String>,
    /// Whether the model has a chat template of its own.
    pub has_template: bool,
    /// Texts that end an answer.
    pub stops: &'a [String],
}

impl fmt::Display for Modelfile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FROM {}", self.from)?;
        if let Some(adapter) = &self.adapter {
            writeln!(f, "ADAPTER {adapter}")?;
        }
        if self.has_template {
            writeln!(
                f,
                "# The chat template is in the model itself. Ollama takes it where it knows one like it, and shows in a model's\n\
                 # Modelfile which. Where it took none, write it as TEMPLATE here."
            )?;
        } else {
            writeln!(
                f,
                "# The model has no chat template: it goes on with what it is given.\n\
                 TEMPLATE {{{{ .Prompt }}}}"
            )?;
        }
        // What cannot be written between quotes ends an answer as the model's own end of text.
        let plain = |stop: &&String| !stop.contains(['"', '\\', '\n', '\r']);
        for stop in self.stops.iter().filter(plain) {
            writeln!(f, "PARAMETER stop \"{stop}\"")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modelfile_names_model_template_and_stops() {
        let stops = ["<|im_end|>".to_owned(), "a\"b".to_owned()];
        let mut modelfile = Modelfile {
            from: "./model.gguf".to_owned(),
            adapter: None,
            has_template: true,
            stops: &stops,
        };
        let text = modelfile.to_string();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            ["FROM ./model.gguf", "PARAMETER stop \"<|im_end|>\""]
        );
        modelfile.adapter = Some("./adapter.gguf".to_owned());
        modelfile.has_template = false;
        let text = modelfile.to_string();
        assert!(text.contains("\nADAPTER ./adapter.gguf\n"), "{text}");
        assert!(text.contains("\nTEMPLATE {{ .Prompt }}\n"), "{text}");
    }
}
