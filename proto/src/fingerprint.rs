//! Provides digests that name a model, a tokenizer, a corpus and a plan.

use std::fmt;

/// Digits of a fingerprint that tell two apart by eye.
const SHORT_DIGITS: usize = 12;

/// Of a fingerprint's hex digits, as many as a message shows.
pub fn short(hex: &str) -> &str {
    hex.get(..SHORT_DIGITS).unwrap_or(hex)
}

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint(pub [u8; 32]);

/// Builds a fingerprint from length-prefixed named fields, so that no two field lists collide by concatenation.
#[derive(Default)]
pub struct FingerprintBuilder(blake3::Hasher);

impl FingerprintBuilder {
    /// Starts a digest for one kind of thing, e.g. `"plan"`.
    pub fn new(kind: &str) -> Self {
        Self::default().field("kind", kind.as_bytes())
    }

    /// Adds a named field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The digest of all fields added.
    pub fn finish(&self) -> Fingerprint {
        Fingerprint(*self.0.finalize().as_bytes())
    }
}

impl Fingerprint {
    /// The digest of plain bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads 64 hex digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        blake3::Hash::from_hex(hex)
            .ok()
            .map(|hash| Self(*hash.as_bytes()))
    }

    /// 64 hex digits.
    pub fn to_hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// As many digits as tell two apart by eye; all of them are [`to_hex`](Fingerprint::to_hex).
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(short(&self.to_hex()))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", self.to_hex())
    }
}
