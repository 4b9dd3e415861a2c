/*! Provides the filling of sentences: patterns with placeholders, and the cast that takes their places.

| placeholder | stands for |
|---|---|
| `{0}` `{1}` | the clause's numbers |
| `{N}` `{P}` | who or what the clause is about, and the one before |
| `{M}` | a friend |
| `{o}` `{c}` | the things, and their measure word (Chinese) |
| `{f}` | the clause's first number as a fraction: half, a third |
| `{p}` `{q}` | the two kinds of a mixture |
*/

use std::ops::Range;

use super::{
    Language, chinese, english,
    random::Random,
    story::{Fact, Story},
    template::{Clause, Setting, Template},
};

/// Words of one language.
pub(super) struct Words {
    pub people: &'static [&'static str],
    /// Things to own and to buy, with their measure word.
    pub things: &'static [Thing],
    /// Places a way leads to.
    pub places: &'static [&'static str],
    /// Things that travel.
    pub vehicles: &'static [&'static str],
    /// Kinds that are mixed: first, second, both.
    pub mixtures: &'static [[&'static str; 3]],
    /// A half, a third, a quarter, a fifth.
    pub fractions: [&'static str; 4],
    /// Ways to say a clause.
    pub patterns: fn(Setting, Clause) -> &'static [&'static str],
    /// Between two sentences.
    pub space: &'static str,
}

/// Something countable.
#[derive(Clone, Copy)]
pub(super) struct Thing {
    pub one: &'static str,
    pub many: &'static str,
    pub measure: &'static str,
}

/// Who and what a story is about.
struct Cast {
    /// Whom or what the clauses are about, in order.
    subjects: Vec<&'static str>,
    friend: &'static str,
    things: Vec<Thing>,
    mixture: [&'static str; 3],
}

impl Cast {
    /// Of the first `people` names.
    fn draw(setting: Setting, words: &Words, people: usize, random: &mut Random) -> Self {
        let things = random.pick_distinct(words.things, 4);
        let people = random.pick_distinct(&words.people[..people], 4);
        let subjects = match setting {
            Setting::Prices => things.iter().map(|thing| thing.one).collect(),
            Setting::Ways => random.pick_distinct(words.places, 4),
            Setting::Travel => random.pick_distinct(words.vehicles, 4),
            _ => people.clone(),
        };
        Self {
            subjects,
            friend: people.last().copied().unwrap_or_default(),
            things,
            mixture: *random.pick(words.mixtures),
        }
    }
}

/// The text of a problem, with what stands for the same thing in every language.
pub(super) struct Told {
    pub text: String,
    /// Fact, placeholder, and the bytes that took its place, in the order of the text.
    pub words: Vec<(usize, char, Range<usize>)>,
}

/// The text of a problem, without its solution.
pub(super) fn tell(
    template: &Template,
    story: &Story,
    language: Language,
    random: &mut Random,
) -> Told {
    let words = words(language);
    let cast = Cast::draw(template.setting, words, words.people.len(), random);
    tell_of(&cast, template, story, language, random)
}

/// The same problem in both languages, of the same people and things.
pub(super) fn tell_in_both(template: &Template, story: &Story, random: &mut Random) -> [Told; 2] {
    let people = Language::ALL.map(|language| words(language).people.len());
    let people = people.into_iter().min().unwrap_or_default();
    let drawn = random.clone();
    Language::ALL.map(|language| {
        // Words of one place are each other's translation, as far as the corpus is concerned.
        let cast = Cast::draw(
            template.setting,
            words(language),
            people,
            &mut drawn.clone(),
        );
        tell_of(&cast, template, story, language, random)
    })
}

fn words(language: Language) -> &'static Words {
    match language {
        Language::English => &english::WORDS,
        Language::Chinese => &chinese::WORDS,
    }
}

fn tell_of(
    cast: &Cast,
    template: &Template,
    story: &Story,
    language: Language,
    random: &mut Random,
) -> Told {
    let words = words(language);
    let mut introduced = Introduced::default();
    let mut told = Told {
        text: String::new(),
        words: Vec::new(),
    };
    for (at, fact) in story.facts.iter().enumerate() {
        if at > 0 {
            told.text += words.space;
        }
        introduced.meet(fact.clause);
        let pattern = random.pick((words.patterns)(template.setting, fact.clause));
        fill(
            &mut told,
            at,
            pattern,
            &Filling::new(fact, cast, words, introduced),
        );
    }
    told
}

/// How many of the cast the story has met.
#[derive(Clone, Copy, Default)]
struct Introduced {
    subject: usize,
    thing: usize,
}

impl Introduced {
    fn meet(&mut self, clause: Clause) {
        match clause {
            Clause::More | Clause::Fewer | Clause::Times | Clause::Part | Clause::Faster => {
                self.subject += 1;
            }
            Clause::BuyToo | Clause::One => self.thing += 1,
            _ => {}
        }
    }
}

/// What takes the places of placeholders in one sentence.
struct Filling<'a> {
    numbers: [String; 2],
    /// Who or what the clause is about, and the one before.
    subjects: [&'a str; 2],
    friend: &'a str,
    thing: [&'a str; 3],
    fraction: &'a str,
    mixture: [&'a str; 3],
}

impl<'a> Filling<'a> {
    fn new(fact: &Fact, cast: &Cast, words: &'a Words, met: Introduced) -> Self {
        let subject = |index: usize| cast.subjects.get(index).copied().unwrap_or_default();
        let thing = cast.things.get(met.thing).copied();
        let fraction = (fact.numbers[0] as usize).checked_sub(2);
        let fraction = fraction.and_then(|index| words.fractions.get(index));
        Self {
            numbers: fact.numbers.map(|number| number.to_string()),
            subjects: [subject(met.subject), subject(met.subject.saturating_sub(1))],
            friend: cast.friend,
            thing: thing.map_or([""; 3], |t| [t.one, t.many, t.measure]),
            fraction: fraction.copied().unwrap_or_default(),
            mixture: cast.mixture,
        }
    }

    /// `None` for what is no placeholder.
    fn word(&self, placeholder: char) -> Option<&str> {
        Some(match placeholder {
            '0' => &self.numbers[0],
            '1' => &self.numbers[1],
            'N' => self.subjects[0],
            'P' => self.subjects[1],
            'M' => self.friend,
            't' => self.thing[0],
            'o' => self.thing[1],
            'c' => self.thing[2],
            'f' => self.fraction,
            'p' => self.mixture[0],
            'q' => self.mixture[1],
            'b' => self.mixture[2],
            _ => return None,
        })
    }
}

/// Adds a sentence to what is told.
fn fill(told: &mut Told, fact: usize, pattern: &str, filling: &Filling<'_>) {
    let mut parts = pattern.split('{');
    told.text += parts.next().unwrap_or_default();
    for part in parts {
        let mut chars = part.chars();
        let placeholder = chars.next().unwrap_or_default();
        if let Some(word) = filling.word(placeholder) {
            let start = told.text.len();
            told.text += word;
            told.words.push((fact, placeholder, start..told.text.len()));
        }
        told.text += chars.as_str().strip_prefix('}').unwrap_or_default();
    }
}
