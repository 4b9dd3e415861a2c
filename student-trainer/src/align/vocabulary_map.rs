//! Provides the map between two vocabularies: which of the student's tokens writes the same bytes as one of the teacher's.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
};

use distill_text::{TokenizerFiles, Vocabulary};

/// Sparse map from the teacher's ids to the student's; every id has at most one counterpart.
///
/// Ordinary tokens match by their bytes, special tokens by their content; the teacher's end-of-text becomes the student's
/// where its content is unknown there.
#[derive(Clone, Debug)]
pub struct VocabularyMap {
    to_student: Vec<Option<u32>>,
    teacher_tokens: usize,
    mapped: usize,
    eos_by_role: bool,
}

impl VocabularyMap {
    /// Compares the two vocabularies once.
    pub fn new(teacher: &Vocabulary, student: &TokenizerFiles) -> Self {
        let vocabulary = student.vocabulary();
        let ids = student_ids(&vocabulary, student);
        let mut to_student: Vec<Option<u32>> = teacher
            .tokens
            .iter()
            .map(|token| {
                let token = token.as_ref()?;
                ids.get(&(token.special, token.bytes.as_slice())).copied()
            })
            .collect();
        let mut eos_by_role = false;
        if let (Some(teacher_eos), Some(student_eos)) = (teacher.eos_id, vocabulary.eos_id)
            && let Some(counterpart @ None) = to_student.get_mut(teacher_eos as usize)
        {
            *counterpart = Some(student_eos);
            eos_by_role = true;
        }
        Self {
            mapped: to_student.iter().flatten().count(),
            teacher_tokens: teacher.iter().count(),
            to_student,
            eos_by_role,
        }
    }

    /// The student's token for one of the teacher's.
    pub fn student_id(&self, teacher_id: u32) -> Option<u32> {
        self.to_student.get(teacher_id as usize).copied().flatten()
    }

    /// How many of the teacher's ids have a token, and how many of these a counterpart.
    pub fn counts(&self) -> (usize, usize) {
        (self.teacher_tokens, self.mapped)
    }

    /// Whether the two end-of-texts have nothing in common but what they are for.
    pub fn eos_by_role(&self) -> bool {
        self.eos_by_role
    }
}

impl fmt::Display for VocabularyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.mapped as f64 / self.teacher_tokens.max(1) as f64;
        write!(
            f,
            "{} of the teacher's {} ids ({share:.1} %) have a counterpart in the student's vocabulary",
            self.mapped, self.teacher_tokens
        )
    }
}

/// The student's id for (special, bytes). Where several tokens write the same bytes (Llama has `A` and `<0x41>`), it is
/// the one that the tokenizer itself gives for them, else the first.
fn student_ids<'a>(
    vocabulary: &'a Vocabulary,
    student: &TokenizerFiles,
) -> HashMap<(bool, &'a [u8]), u32> {
    let mut ids = HashMap::new();
    for (id, token) in vocabulary.iter() {
        match ids.entry((token.special, token.bytes.as_slice())) {
            Entry::Vacant(vacant) => {
                vacant.insert(id);
            }
            Entry::Occupied(mut occupied) => {
                if written(student, &token.bytes) == Some(id) {
                    occupied.insert(id);
                }
            }
        }
    }
    ids
}

/// The one token that a text becomes.
fn written(student: &TokenizerFiles, bytes: &[u8]) -> Option<u32> {
    let encoded = student.encode(std::str::from_utf8(bytes).ok()?).ok()?;
    // A tokenizer that puts a space first (Llama) does so here too; it comes as a token of its own.
    encoded
        .ids
        .last()
        .copied()
        .filter(|_| encoded.ids.len() <= 2)
}
