//! Provides pairs: one problem, read by the teacher in English and by the student in Chinese, with the same solution.

use std::ops::Range;

use serde::Serialize;

use super::{
    Language, Split,
    random::{Random, mix},
    story::Story,
    template::{Template, by_setting_and_steps},
    wording::{Told, tell_in_both},
};
use crate::Result;

/// What one side reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The question, with a line break at its end.
    pub prompt: String,
    /// The worked solution and the answer; empty where there is no label.
    pub completion: String,
}

/// Parts that belong together: ranges of bytes, as `prompt[0:3]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The teacher's.
    pub teacher: String,
    /// The student's.
    pub student: String,
}

/// A line of a corpus of pairs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// In English.
    pub teacher: Side,
    /// In Chinese.
    pub student: Side,
    /// The solution, which has no words, and the answer.
    pub shared: Vec<Link>,
    /// The same number, person or thing in both questions.
    pub links: Vec<Link>,
    /// Prompts carry mass in transport.
    pub targets: &'static str,
    /// What is to be computed, without any result.
    pub equations: String,
    /// The answer alone.
    pub answer: u32,
    /// Which template it was made from.
    pub template: String,
}

/// Makes `count` pairs of a split; the same seed makes the same ones. Without `labels` the student has the question alone.
///
/// # Errors
///
/// A template that cannot be drawn.
pub fn pairs(split: Split, count: usize, seed: u64, labels: bool) -> Result<Vec<Pair>> {
    let settings = by_setting_and_steps(split == Split::HeldoutTemplates);
    let mut random = Random::new(mix(seed ^ PAIRS) ^ split as u64);
    let make = |_| {
        let lengths: &Vec<Vec<&Template>> = random.pick(&settings);
        let templates: &Vec<&Template> = random.pick(lengths);
        let template = random.pick(templates);
        let story = Story::draw(template, split != Split::Train, &mut random)?;
        let told = tell_in_both(template, &story, &mut random);
        Ok(Pair::of(template, &story, &told, labels))
    };
    (0..count).map(make).collect()
}

/// Keeps the stream of pairs apart from that of problems.
const PAIRS: u64 = 0x5041_4952;

impl Pair {
    /// Operations in the solution.
    pub fn steps(&self) -> usize {
        self.equations.split(';').count()
    }

    fn of(
        template: &Template,
        story: &Story,
        [english, chinese]: &[Told; 2],
        labels: bool,
    ) -> Self {
        let worked = story.worked() + "\n";
        let completion = |language: Language| {
            let answer = story.answer;
            format!("{worked}{}{answer}", language.answer_label())
        };
        let [ours, theirs] = Language::ALL.map(completion);
        let digits = story.answer.to_string().len();
        let parts = [
            (0..worked.len(), 0..worked.len()),
            (
                ours.len() - digits..ours.len(),
                theirs.len() - digits..theirs.len(),
            ),
        ];
        Self {
            shared: parts
                .into_iter()
                .filter(|_| labels)
                .map(|(teacher, student)| Link::of("completion", &teacher, &student))
                .collect(),
            links: links(english, chinese),
            teacher: Side {
                prompt: english.text.clone() + "\n",
                completion: ours,
            },
            student: Side {
                prompt: chinese.text.clone() + "\n",
                completion: if labels { theirs } else { String::new() },
            },
            targets: "all",
            equations: story.stated(),
            answer: story.answer,
            template: template.id.clone(),
        }
    }
}

impl Link {
    pub(super) fn of(field: &str, teacher: &Range<usize>, student: &Range<usize>) -> Self {
        let range = |range: &Range<usize>| format!("{field}[{}:{}]", range.start, range.end);
        Self {
            teacher: range(teacher),
            student: range(student),
        }
    }
}

/// The words that stand for the same placeholder of the same fact, first with first.
fn links(english: &Told, chinese: &Told) -> Vec<Link> {
    let mut taken = vec![false; chinese.words.len()];
    let mut links = Vec::new();
    for (fact, placeholder, ours) in &english.words {
        let same = chinese
            .words
            .iter()
            .enumerate()
            .find(|(at, (f, p, _))| !taken[*at] && f == fact && p == placeholder);
        if let Some((at, (_, _, theirs))) = same
            && !ours.is_empty()
            && !theirs.is_empty()
        {
            taken[at] = true;
            links.push(Link::of("prompt", ours, theirs));
        }
    }
    links
}
