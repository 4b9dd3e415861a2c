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
    fn draw(setting: Setting, words: &Words, random: &mut Random) -> Self {
        let things = random.pick_distinct(words.things, 4);
        let people = random.pick_distinct(words.people, 4);
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

/// The text of a problem, without its solution.
pub(super) fn tell(
    template: &Template,
    story: &Story,
    language: Language,
    random: &mut Random,
) -> String {
    let words = match language {
        Language::English => &english::WORDS,
        Language::Chinese => &chinese::WORDS,
    };
    let cast = Cast::draw(template.setting, words, random);
    let mut introduced = Introduced::default();
    let sentences: Vec<String> = story
        .facts
        .iter()
        .map(|fact| {
            introduced.meet(fact.clause);
            let pattern = random.pick((words.patterns)(template.setting, fact.clause));
            fill(pattern, fact, &cast, words, introduced)
        })
        .collect();
    sentences.join(words.space)
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

fn fill(pattern: &str, fact: &Fact, cast: &Cast, words: &Words, met: Introduced) -> String {
    let subject = |index: usize| cast.subjects.get(index).copied().unwrap_or_default();
    let thing = cast.things.get(met.thing).copied();
    let [one, many, measure] = thing.map_or([""; 3], |t| [t.one, t.many, t.measure]);
    let [first, second] = fact.numbers;
    let fraction = (first as usize).checked_sub(2);
    let fraction = fraction.and_then(|index| words.fractions.get(index));
    let [kind, other, both] = cast.mixture;
    [
        ("{0}", first.to_string().as_str()),
        ("{1}", second.to_string().as_str()),
        ("{N}", subject(met.subject)),
        ("{P}", subject(met.subject.saturating_sub(1))),
        ("{M}", cast.friend),
        ("{t}", one),
        ("{o}", many),
        ("{c}", measure),
        ("{f}", fraction.copied().unwrap_or_default()),
        ("{p}", kind),
        ("{q}", other),
        ("{b}", both),
    ]
    .into_iter()
    .fold(pattern.to_owned(), |text, (placeholder, word)| {
        text.replace(placeholder, word)
    })
}
