//! Provides the two models of a plan, read from what is there before any weight: a directory, a `config.json`, a GGUF file's
//! header, a name on the hub, or the shapes of the reference pair, which are built in.

use std::path::Path;

use distill_hub::Wanted;
use distill_model::{CONFIG_BYTES_MAX, Gguf, ModelConfig, Weights, is_gguf};
use serde::Deserialize;

use super::packed::Packed;
use crate::{Error, Result, files, shutdown::Shutdown, student};

/// A model's shape, and how its checkpoint holds the linears.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What the table calls it.
    pub name: String,
    /// The decoder's shape.
    pub model: ModelConfig,
    /// How the checkpoint holds its weights.
    pub stored: Stored,
    /// What a GGUF file holds, in place of `stored`.
    pub packed: Option<Packed>,
}

/// How a checkpoint holds its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of a weight that is not in four bits.
    pub dense_bytes: u64,
    /// Whether the linears are in four bits, with plain or double-quantised scales.
    pub four_bit: Option<FourBit>,
}

/// Scales of 4-bit weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourBit {
    /// An f32 for 64 weights.
    Plain,
    /// A byte for 64 weights, and an f32 for 256 of those.
    Double,
}

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Without one only the trainer is counted.
    pub teacher: Option<Shape>,
    /// The student.
    pub student: Shape,
}

const CONFIG_FILE: &str = "config.json";

/// Qwen2.5-7B's `config.json`, as far as it decides sizes.
const REFERENCE_TEACHER: (&str, &str) = (
    "Qwen2.5-7B",
    r#"{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 131072, "tie_word_embeddings": false, "hidden_act": "silu",
        "torch_dtype": "bfloat16"}"#,
);

/// The same of Qwen2.5-1.5B in bitsandbytes' four bits.
const REFERENCE_STUDENT: (&str, &str) = (
    "Qwen2.5-1.5B-bnb-4bit",
    r#"{"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 131072, "tie_word_embeddings": true, "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "quantization_config": {"load_in_4bit": true, "bnb_4bit_use_double_quant": true}}"#,
);

impl Pair {
    /// Qwen2.5-7B and Qwen2.5-1.5B in four bits.
    ///
    /// # Errors
    /// Never: what is built in can be read.
    pub fn reference() -> Result<Self> {
        Ok(Self {
            teacher: Some(built_in(REFERENCE_TEACHER)?),
            student: built_in(REFERENCE_STUDENT)?,
        })
    }

    /// Reads both shapes. A teacher that is a server's address, as `train` has it, says nothing about its size; under the
    /// preset `reference-24gb` what is not named is the reference pair's.
    ///
    /// # Errors
    /// A student that is not named, or a `config.json` that cannot be read.
    pub fn read(teacher: &str, student: &Path, preset: &str, shutdown: &Shutdown) -> Result<Self> {
        let reference = preset == "reference-24gb";
        let teacher = match (is_address(teacher), reference) {
            (true, true) => Some(built_in(REFERENCE_TEACHER)?),
            (true, false) => None,
            (false, _) => Some(Shape::read(Path::new(teacher), shutdown)?),
        };
        let student = match (student.as_os_str().is_empty(), reference) {
            (true, true) => built_in(REFERENCE_STUDENT)?,
            (true, false) => {
                return Err(Error::Config(
                    "student: name a directory or config.json with --student, or take the reference pair with \
                     --preset reference-24gb"
                        .into(),
                ));
            }
            (false, _) => Shape::read(student, shutdown)?,
        };
        if student.packed.is_some() {
            return Err(Error::Config(format!(
                "student: {} is a GGUF file, which is not trained; make a directory of it with student-trainer quantize",
                student.name
            )));
        }
        Ok(Self { teacher, student })
    }

    /// The same with the teacher as a file in llama.cpp's Q4_K_M, where it is none yet and could be one.
    pub fn with_q4_k_m(&self) -> Option<Self> {
        let teacher = self.teacher.as_ref()?;
        if teacher.packed.is_some() || teacher.stored.four_bit.is_some() {
            return None;
        }
        Some(Self {
            teacher: Some(Shape {
                packed: Some(Packed::q4_k_m(&teacher.model)?),
                ..teacher.clone()
            }),
            ..self.clone()
        })
    }
}

/// Whether this is where a server listens, and so no model's directory or name; nothing at all is no model either.
fn is_address(teacher: &str) -> bool {
    teacher.is_empty() || teacher.contains("://") || teacher.starts_with("unix:")
}

fn built_in((name, json): (&str, &str)) -> Result<Shape> {
    Shape::parse(name, json.as_bytes(), Path::new(CONFIG_FILE))
}

impl Shape {
    /// Of a directory, of a `config.json`, of a GGUF file, or of a name on the hub.
    ///
    /// # Errors
    /// None of these, or a `config.json` that is none.
    pub fn read(given: &Path, shutdown: &Shutdown) -> Result<Self> {
        let mut shape = Self::open(&student::located(given, Wanted::Config, shutdown)?)?;
        shape.name = name(given);
        Ok(shape)
    }

    /// Of a directory, of the `config.json` in it, or of a GGUF file.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn open(found: &Path) -> Result<Self> {
        if is_gguf(found) {
            let gguf = Gguf::open(found)?;
            return Ok(Self {
                name: name(found),
                model: gguf.config().clone(),
                stored: Stored::default(),
                packed: Some(Packed::read(&gguf)?),
            });
        }
        let path = match found.is_dir() {
            true => found.join(CONFIG_FILE),
            false => found.to_owned(),
        };
        let json = files::read(&path, CONFIG_BYTES_MAX)?;
        let mut shape = Self::parse(&name(found), &json, &path)?;
        // A plan needs no weights. Where they are there and whole, they say whether the head is a matrix of its own.
        let directory = path.parent().filter(|_| path.ends_with(CONFIG_FILE));
        if let Some(Ok(weights)) = directory.map(Weights::open) {
            shape.model = weights.settled(&shape.model);
        }
        Ok(shape)
    }

    /// From the bytes of a `config.json`; `path` is used in messages only.
    ///
    /// # Errors
    /// What the decoder says about the shape.
    pub fn parse(name: &str, json: &[u8], path: &Path) -> Result<Self> {
        let model = ModelConfig::parse(json, path)?;
        let stored: RawStored = serde_json::from_slice(json)
            .map_err(|e| Error::file(path, format!("quantization_config: {e}")))?;
        Ok(Self {
            name: name.to_owned(),
            model,
            stored: stored.read(),
            packed: None,
        })
    }
}

/// A model's name: its directory's, or the last part of its name on the hub.
fn name(given: &Path) -> String {
    let given = match given.file_name() {
        Some(name) if name == CONFIG_FILE => given.parent().unwrap_or(given),
        _ => given,
    };
    let name = given.file_name().unwrap_or(given.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The fields of `config.json` that say how weights are stored, by transformers 4 or 5.
#[derive(Deserialize)]
struct RawStored {
    #[serde(alias = "torch_dtype")]
    dtype: Option<String>,
    quantization_config: Option<RawQuantization>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawQuantization {
    load_in_4bit: bool,
    bnb_4bit_use_double_quant: bool,
}

impl RawStored {
    fn read(self) -> Stored {
        let four_bit = self
            .quantization_config
            .filter(|quantization| quantization.load_in_4bit);
        Stored {
            dense_bytes: match self.dtype.as_deref() {
                Some("float32") => 4,
                _ => 2,
            },
            four_bit: four_bit.map(
                |quantization| match quantization.bnb_4bit_use_double_quant {
                    true => FourBit::Double,
                    false => FourBit::Plain,
                },
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preset_stands_for_the_pair_and_an_address_for_no_teacher() {
        let read = |teacher: &str, preset: &str| {
            Pair::read(teacher, Path::new(""), preset, &Shutdown::default())
        };
        let reference = read("http://127.0.0.1:50051", "reference-24gb").unwrap();
        assert_eq!(reference, Pair::reference().unwrap());
        assert_eq!(reference.student.stored.four_bit, Some(FourBit::Double));
        assert_eq!(reference.teacher.unwrap().stored.four_bit, None);
        let error = read("unix:/run/teacher", "default")
            .unwrap_err()
            .to_string();
        assert!(error.contains("--preset reference-24gb"), "{error}");
    }

    #[test]
    fn a_gguf_file_is_a_teacher_s_and_no_student_s() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures/gguf/qwen2/quantised.gguf");
        let shutdown = Shutdown::default();
        let teacher = file.to_str().unwrap();
        let pair = Pair::read(teacher, Path::new(""), "reference-24gb", &shutdown).unwrap();
        let shape = pair.teacher.as_ref().unwrap();
        assert_eq!(
            (shape.name.as_str(), shape.model.hidden_size),
            ("quantised.gguf", 32)
        );
        assert!(shape.packed.is_some() && pair.with_q4_k_m().is_none());
        let error = Pair::read("", &file, "default", &shutdown)
            .unwrap_err()
            .to_string();
        assert!(error.contains("quantised.gguf is a GGUF file"), "{error}");
    }

    #[test]
    fn a_shape_is_read_from_a_directory_and_from_a_file_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let json = REFERENCE_STUDENT
            .1
            .replace("_double_quant\": true", "_double_quant\": false");
        std::fs::write(&path, json.replace("\"bfloat16\"", "\"float32\"")).unwrap();
        let shutdown = Shutdown::default();
        let shape = Shape::read(dir.path(), &shutdown).unwrap();
        let stored = Stored {
            dense_bytes: 4,
            four_bit: Some(FourBit::Plain),
        };
        assert_eq!(shape.stored, stored);
        assert_eq!(shape, Shape::read(&path, &shutdown).unwrap());
        let pair = Pair::read("", dir.path(), "default", &shutdown).unwrap();
        assert!(pair.teacher.is_none());
    }
}
