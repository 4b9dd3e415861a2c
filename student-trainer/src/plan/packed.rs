/*! Provides what the tensors of a GGUF file take: as its header says, or by the recipe of Q4_K_M for a file that is not there.

Matrices stay in the file's blocks and are dequantised a tile at a time on the CPU, a strip at a time on a card. There the
embedding, of which a pass needs a few rows, stays in the machine's memory; a head that is the embedding is held a second time.
*/

use distill_model::{Architecture, Gguf, ModelConfig, packed_bytes, strip_elements, tile_bytes};

use super::{
    config::Place,
    held::{Held, HeldHead},
};
use crate::Result;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const F32: u64 = 4;

/// The tensors of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    tensors: Vec<PackedTensor>,
    /// Memory of the open file's metadata, above all its tokenizer's lists.
    metadata_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct PackedTensor {
    part: TensorPart,
    rows: usize,
    columns: usize,
    stored_bytes: u64,
    /// Whether it stays as it is stored, on the CPU and on a card.
    on_cpu: bool,
    on_card: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TensorPart {
    Embedding,
    Head,
    Layers,
}

impl Packed {
    /// Of a file, from its header.
    ///
    /// # Errors
    /// Never, for a file that could be opened.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let tensor = |(name, shape): (String, Vec<usize>)| {
            Ok(PackedTensor {
                stored_bytes: gguf.stored_bytes(&name)?,
                on_cpu: gguf.stays_packed(&name, true)?,
                on_card: gguf.stays_packed(&name, false)?,
                ..PackedTensor::dense(&name, &shape)
            })
        };
        let shapes = gguf.config().parameter_shapes();
        Ok(Self {
            tensors: shapes.into_iter().map(tensor).collect::<Result<_>>()?,
            metadata_bytes: gguf.metadata_bytes(),
        })
    }

    /// Of the file that llama.cpp's `llama-quantize` makes with `Q4_K_M`; `None` for families whose files are not read.
    ///
    /// Q4_K, but Q6_K for the head and, in the first and last eighth of the layers and in every third between them, for v_proj and
    /// down_proj. Rows that are no whole blocks of 256 become Q5_0 and Q8_0 instead.
    pub fn q4_k_m(model: &ModelConfig) -> Option<Self> {
        match model.model_type {
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Qwen2
            | Architecture::Qwen3 => {}
            _ => return None,
        }
        let layers = model.num_hidden_layers;
        let finer = |layer: usize| {
            let eighth = layers / 8;
            layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
        };
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let dense = PackedTensor::dense(&name, &shape);
            if shape.len() < 2 {
                return Some(dense);
            }
            let layer = name.split('.').nth(2).and_then(|layer| layer.parse().ok());
            let fine = match dense.part {
                TensorPart::Head => true,
                TensorPart::Embedding => model.tie_word_embeddings,
                TensorPart::Layers => {
                    let chosen = name.contains(".v_proj.") || name.contains(".down_proj.");
                    chosen && layer.is_some_and(finer)
                }
            };
            let kinds = if fine {
                ["Q6_K", "Q8_0"]
            } else {
                ["Q4_K", "Q5_0"]
            };
            let mut bytes = kinds
                .iter()
                .filter_map(|kind| packed_bytes(kind, dense.rows, dense.columns));
            Some(PackedTensor {
                stored_bytes: bytes.next()?,
                on_cpu: true,
                on_card: true,
                ..dense
            })
        };
        let shapes = model.parameter_shapes();
        Some(Self {
            tensors: shapes.into_iter().map(tensor).collect::<Option<_>>()?,
            metadata_bytes: 0,
        })
    }

    /// What is held of it, where a weight that does not stay packed takes `element` bytes.
    pub fn held(&self, place: Place, element: u64) -> Held {
        let tied = !self
            .tensors
            .iter()
            .any(|tensor| tensor.part == TensorPart::Head);
        let mut held = Held::default();
        for tensor in &self.tensors {
            let bytes = tensor.bytes(place, element);
            if tensor.part != TensorPart::Embedding || place == Place::Cpu || !tensor.on_cpu {
                held.bytes += bytes;
                continue;
            }
            held.host_bytes = tensor.stored_bytes;
            held.bytes += if tied { bytes } else { 0 };
        }
        let packed = || self.tensors.iter().filter(|tensor| tensor.stays(place));
        let layers = || packed().filter(|tensor| tensor.part == TensorPart::Layers);
        let head_part = if tied {
            TensorPart::Embedding
        } else {
            TensorPart::Head
        };
        let head = packed().find(|tensor| tensor.part == head_part);
        match place {
            Place::Cpu => {
                // Every thread keeps its largest tile. One is counted: the others, a few MiB each, are as many as the machine has cores.
                let tiles = packed().map(|tensor| tile_bytes(tensor.rows, tensor.columns));
                held.layer_tile = tiles.max().unwrap_or(0);
                held.head_tile = held.layer_tile;
                // Embedding and head are read first, when there is little else.
                let read = layers().map(PackedTensor::buffer_bytes).max().unwrap_or(0);
                held.reading = ("one matrix while it is read", read);
                held.metadata_bytes = self.metadata_bytes;
            }
            Place::Card => {
                // In f32, and again in the activations' type where that is another.
                let converted = if element < F32 { element } else { 0 };
                let strips = layers().map(|tensor| tensor.strip() * (F32 + converted));
                held.layer_tile = strips.max().unwrap_or(0);
                held.head_tile = head.map_or(0, |head| head.strip() * F32);
            }
        }
        if let Some(head) = head {
            let in_parts = place == Place::Card && head.strip() < head.elements();
            held.head = HeldHead::Packed { in_parts };
        }
        held
    }
}

impl PackedTensor {
    /// A tensor that is f32 in the file.
    fn dense(name: &str, shape: &[usize]) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        let elements: usize = shape.iter().product();
        Self {
            part: match name {
                EMBEDDING => TensorPart::Embedding,
                HEAD => TensorPart::Head,
                _ => TensorPart::Layers,
            },
            rows: elements / columns.max(1),
            columns,
            stored_bytes: elements as u64 * F32,
            on_cpu: false,
            on_card: false,
        }
    }

    fn elements(&self) -> u64 {
        self.rows as u64 * self.columns as u64
    }

    /// Elements that are dequantised, or read, at a time.
    fn strip(&self) -> u64 {
        strip_elements(self.elements())
    }

    /// The buffer that its blocks are read into, at most a strip at a time.
    fn buffer_bytes(&self) -> u64 {
        self.strip() * self.stored_bytes / self.elements().max(1)
    }

    fn stays(&self, place: Place) -> bool {
        match place {
            Place::Cpu => self.on_cpu,
            Place::Card => self.on_card,
        }
    }

    fn bytes(&self, place: Place, element: u64) -> u64 {
        match self.stays(place) {
            true => self.stored_bytes,
            false => self.elements() * element,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use distill_model::{Decoder, LoadOptions, Weights};

    use super::*;
    use crate::plan::Pair;

    fn fixture(kind: &str, file: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf");
        root.join(kind).join(file)
    }

    #[test]
    fn what_is_held_is_what_a_decoder_holds() {
        for (kind, file) in [
            ("qwen2", "quantised.gguf"),
            ("llama", "quantised.gguf"),
            ("llama", "model.gguf"),
        ] {
            let weights = Weights::open(&fixture(kind, file)).unwrap();
            let config = weights.model_config().unwrap();
            let decoder = Decoder::load(&config, &weights, &LoadOptions::reference()).unwrap();
            let packed = Packed::read(weights.gguf().unwrap()).unwrap();
            let held = packed.held(Place::Cpu, F32);
            assert_eq!(held.bytes, decoder.weight_bytes() as u64, "{kind}/{file}");
            assert_eq!(held.head, HeldHead::Packed { in_parts: false });
            // 384 tokens of 9 to 16 letters in three lists of entries of 24 to 32 bytes.
            assert!(
                (30_000..200_000).contains(&held.metadata_bytes),
                "{}",
                held.metadata_bytes
            );
            // The whole embedding, the largest matrix: a tile has up to 1024 rows.
            assert_eq!(held.layer_tile, 4 * 32 * config.vocab_size as u64);
            // The largest matrix of a layer, read whole.
            let layers = packed.tensors.iter();
            let layers = layers.filter(|tensor| tensor.on_cpu && tensor.part == TensorPart::Layers);
            let largest = layers.map(|tensor| tensor.stored_bytes).max();
            assert_eq!(held.reading.1, largest.unwrap());
        }
    }

    #[test]
    fn on_a_card_the_embedding_stays_in_the_machine_s_memory() {
        let read = |kind: &str, file: &str| {
            let gguf = Gguf::open(&fixture(kind, file)).unwrap();
            (Packed::read(&gguf).unwrap(), gguf)
        };
        let (own_head, gguf) = read("qwen2", "quantised.gguf");
        let embedding = gguf.stored_bytes(EMBEDDING).unwrap();
        let (card, cpu) = (
            own_head.held(Place::Card, F32),
            own_head.held(Place::Cpu, F32),
        );
        assert_eq!((card.host_bytes, cpu.host_bytes), (embedding, 0));
        assert_eq!(card.bytes + embedding, cpu.bytes);
        let (tied, _) = read("llama", "quantised.gguf");
        let (card, cpu) = (tied.held(Place::Card, F32), tied.held(Place::Cpu, F32));
        assert_eq!(card.bytes, cpu.bytes);
        assert!(card.host_bytes > 0);
        // Half precision is no block: on a card it is dense, in the activations' type.
        let (half, _) = read("llama", "model.gguf");
        let (card, cpu) = (half.held(Place::Card, 2), half.held(Place::Cpu, 2));
        assert_eq!((card.bytes, card.head), (cpu.bytes, HeldHead::Dense));
        assert_eq!((card.layer_tile, card.head_tile), (0, 0));
    }

    #[test]
    fn the_reference_teacher_in_q4_k_m_is_as_large_as_the_published_file() {
        let teacher = Pair::reference().unwrap().teacher.unwrap();
        let packed = Packed::q4_k_m(&teacher.model).unwrap();
        let stored: u64 = packed
            .tensors
            .iter()
            .map(|tensor| tensor.stored_bytes)
            .sum();
        // Qwen2.5-7B-Instruct-Q4_K_M.gguf: 4.68 GB, of which 6 MB are its header.
        assert!((4_670_000_000..4_685_000_000).contains(&stored), "{stored}");
        let card = packed.held(Place::Card, 2);
        let embedding = 152_064 * 3584 / 256 * 144;
        assert_eq!(card.host_bytes, embedding);
        assert!(card.bytes + embedding <= stored);
        // A strip of 2^25 weights in f32 and in bf16; of the head in f32.
        assert_eq!((card.layer_tile, card.head_tile), (6 << 25, 4 << 25));
        assert_eq!(card.head, HeldHead::Packed { in_parts: true });
    }

    #[test]
    fn rows_that_are_no_whole_blocks_are_stored_as_llama_cpp_stores_them() {
        let student = Pair::reference().unwrap().student.model;
        let narrow = ModelConfig {
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            ..student
        };
        let packed = Packed::q4_k_m(&narrow).unwrap();
        let stored = |part, columns| -> Vec<u64> {
            let tensors = packed.tensors.iter();
            let tensors = tensors.filter(|tensor| tensor.part == part && tensor.columns == columns);
            tensors
                .map(|tensor| 1024 * tensor.stored_bytes / tensor.elements())
                .collect()
        };
        // Q8_0 has 34 bytes for 32 weights; the embedding is the head.
        assert_eq!(stored(TensorPart::Embedding, 896), [1088]);
        // 4864 is 19 blocks: Q4_K has 144 bytes for 256 weights, Q6_K 210.
        let down = stored(TensorPart::Layers, 4864);
        let finer = down.iter().filter(|bytes| **bytes == 840).count();
        assert_eq!((down.len(), finer), (24, 12));
        assert!(down.iter().all(|bytes| [840, 576].contains(bytes)));
    }
}
