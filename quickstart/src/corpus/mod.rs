/*! Provides the corpus: multi-step arithmetic word problems with worked solutions, in English and Chinese.

```text
 {"prompt": "Mia has 37 cups. Mia buys 45 more. ...?\n", "completion": "37+45=77+5=82\n...\nAnswer: 64", ...}
```

Three splits, disjoint by construction:
- [`Split::Train`];
- [`Split::HeldoutNumbers`]: the training templates with operands that training never sees together. A hash of the operands
  decides on which side they are, whatever the template and language;
- [`Split::HeldoutTemplates`]: templates that training never sees, with such operands too.
*/

mod arithmetic;
mod chinese;
mod english;
mod file;
mod lessons;
mod pair;
mod random;
mod story;
mod template;
#[cfg(test)]
mod tests;
mod wording;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

pub use file::{Sizes, read_problems, write_corpus};
pub use lessons::{write_few, write_pairs, write_readings};
pub use pair::{Pair, pairs};

use crate::{Error, Result};
use random::{Random, mix};
use story::Story;
use template::{Template, by_setting_and_steps};

/// Attempts for each problem wanted before a held-out split counts as exhausted.
const ATTEMPTS_PER_PROBLEM: usize = 20;

/// A language of the problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[serde(rename = "en")]
    English,
    /// Chinese.
    #[serde(rename = "zh")]
    Chinese,
}

impl Language {
    const ALL: [Self; 2] = [Self::English, Self::Chinese];

    /// What stands before the answer on a solution's last line.
    pub fn answer_label(self) -> &'static str {
        match self {
            Self::English => "Answer: ",
            Self::Chinese => "答案：",
        }
    }
}

/// A part of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What models are trained on.
    Train,
    /// Known templates, unseen operands.
    HeldoutNumbers,
    /// Unseen templates, unseen operands.
    HeldoutTemplates,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::HeldoutNumbers, Self::HeldoutTemplates];

    /// The split's name, as in its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldoutNumbers => "heldout-numbers",
            Self::HeldoutTemplates => "heldout-templates",
        }
    }
}

/// A problem with its worked solution; serialised, a line of the corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The question, with a line break at its end, so that prompt and completion are tokenized alike together and apart.
    pub prompt: String,
    /// One chain of equations a line, then the answer.
    pub completion: String,
    /// What is to be computed, without any result: `a=37×4;b=a÷4`.
    pub equations: String,
    /// The answer alone.
    pub answer: u32,
    /// Which template it was made from, without the language.
    pub template: String,
    /// Its language.
    pub language: Language,
}

impl Problem {
    /// Operations in the solution: one a line, before the answer.
    pub fn steps(&self) -> usize {
        self.completion.lines().count().saturating_sub(1)
    }

    fn make(template: &Template, story: &Story, language: Language, random: &mut Random) -> Self {
        let label = language.answer_label();
        Self {
            prompt: wording::tell(template, story, language, random).text + "\n",
            completion: format!("{}\n{label}{}", story.worked(), story.answer),
            equations: story.stated(),
            answer: story.answer,
            template: template.id.clone(),
            language,
        }
    }
}

/// The answer that a generated text ends in: the digits after the label on its last line; `None` where it has none.
pub fn answer_in(completion: &str) -> Option<u32> {
    let last = completion.trim_end().lines().last()?;
    let labels = Language::ALL.map(Language::answer_label);
    let digits = labels.iter().find_map(|label| last.strip_prefix(label))?;
    digits.parse().ok()
}

/// Makes `count` problems of a split; the same seed makes the same problems, and more of them begin alike.
///
/// Held-out problems are distinct.
///
/// # Errors
///
/// [`Error::Exhausted`] when there are not so many distinct ones, [`Error::Undrawable`] for a template that cannot be.
pub fn generate(split: Split, count: usize, seed: u64) -> Result<Vec<Problem>> {
    let held_out = split == Split::HeldoutTemplates;
    let settings = by_setting_and_steps(held_out);
    // Each split has its own stream, so that the length of one does not move another.
    let mut random = Random::new(mix(seed) ^ split as u64);
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for _ in 0..count.saturating_mul(ATTEMPTS_PER_PROBLEM) {
        if problems.len() == count {
            break;
        }
        // Settings weigh alike, however many arrangements they have.
        let lengths: &Vec<Vec<&Template>> = random.pick(&settings);
        let templates: &Vec<&Template> = random.pick(lengths);
        let template = random.pick(templates);
        let language = *random.pick(&Language::ALL);
        let story = Story::draw(template, split != Split::Train, &mut random)?;
        let problem = Problem::make(template, &story, language, &mut random);
        if split == Split::Train || seen.insert(problem.prompt.clone()) {
            problems.push(problem);
        }
    }
    if problems.len() < count {
        return Err(Error::Exhausted {
            split: split.name(),
            wanted: count,
            found: problems.len(),
        });
    }
    Ok(problems)
}
