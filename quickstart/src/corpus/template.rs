/*! Provides the templates: what a problem tells, clause by clause, before it has numbers or a language.

A setting has openings, clauses that may follow in any order, and endings; every arrangement of two to four steps is a
template. Eleven of them are held out: their words and operations are known from the others, their arrangement is new.
*/

use std::{collections::BTreeMap, sync::LazyLock};

use Clause::*;
use Setting::*;

/// Operations in a solution.
pub(super) const STEPS: std::ops::RangeInclusive<usize> = 2..=4;

/// What a problem is about; it chooses the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Setting {
    /// One person's things come and go.
    Stock,
    /// Several people's things, compared.
    Things,
    /// Several people's ages, compared.
    Ages,
    /// Prices of several goods, compared.
    Prices,
    /// Lengths of several ways, compared.
    Ways,
    /// A purchase.
    Shop,
    /// A journey.
    Travel,
    /// A mixture in a ratio.
    Mixture,
}

/// One statement or question; its numbers are drawn when a story is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Clause {
    /// Somebody or something has a number.
    Start,
    /// So many in each of so many boxes.
    Boxes,
    /// So many are added.
    Gain,
    /// So many are taken away.
    Lose,
    /// How many there are now.
    AskNow,
    /// How many each gets of equal shares.
    AskShare,
    /// The next one has so many more than the one before.
    More,
    /// The next one has so many fewer than the one before.
    Fewer,
    /// The next one has so many times as much as the one before.
    Times,
    /// The next one has a half to a fifth of the one before.
    Part,
    /// What the last one has.
    AskLast,
    /// What all have together.
    AskTotal,
    /// What the last one has after so many years.
    AskLater,
    /// So many goods at a price.
    Buy,
    /// So many other goods at a price.
    BuyToo,
    /// One other thing at a price.
    One,
    /// So much off.
    Coupon,
    /// What all costs.
    AskCost,
    /// The change of a sum.
    AskChange,
    /// What each of several pays.
    AskSplit,
    /// So many hours at a speed.
    Drive,
    /// So many further hours at another speed.
    DriveOn,
    /// So far beyond.
    Further,
    /// So far in so many hours.
    Pace,
    /// Another that is faster by so much.
    Faster,
    /// How far in all.
    AskFar,
    /// What remains of a distance.
    AskRemaining,
    /// The speed on what remains of a distance.
    AskRestSpeed,
    /// The speed of the last one.
    AskSpeed,
    /// How far in so many hours at that speed.
    AskFarIn,
    /// Two kinds in a ratio.
    Ratio,
    /// So many of both kinds.
    InAll,
    /// So many of the first kind.
    FirstIs,
    /// So many of the second kind.
    SecondIs,
    /// How many of the first kind.
    AskFirst,
    /// How many of the second kind.
    AskSecond,
    /// How many of both kinds.
    AskBoth,
}

/// The order of clauses that makes a kind of problem.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// Setting and clauses, such as `stock-start-gain-lose-asknow`.
    pub id: String,
    pub setting: Setting,
    pub clauses: Vec<Clause>,
    /// Operations of the solution.
    pub steps: usize,
    /// Whether training never sees it.
    pub held_out: bool,
}

/// How the problems of a setting are put together.
struct Grammar {
    setting: Setting,
    openings: &'static [Clause],
    /// From so many to so many of these, in any order.
    middles: (usize, usize, &'static [Clause]),
    endings: &'static [Clause],
}

const fn grammar(
    setting: Setting,
    openings: &'static [Clause],
    middles: (usize, usize, &'static [Clause]),
    endings: &'static [Clause],
) -> Grammar {
    Grammar {
        setting,
        openings,
        middles,
        endings,
    }
}

const COMPARISONS: (usize, usize, &[Clause]) = (1, 3, &[More, Fewer, Times, Part]);

const GRAMMARS: [Grammar; 11] = [
    grammar(
        Stock,
        &[Start, Boxes],
        (0, 4, &[Gain, Lose]),
        &[AskNow, AskShare],
    ),
    grammar(Things, &[Start], COMPARISONS, &[AskLast, AskTotal]),
    grammar(Ages, &[Start], COMPARISONS, &[AskLast, AskTotal, AskLater]),
    grammar(Prices, &[Start], COMPARISONS, &[AskLast, AskTotal]),
    grammar(Ways, &[Start], COMPARISONS, &[AskLast, AskTotal]),
    grammar(
        Shop,
        &[Buy],
        (0, 3, &[BuyToo, One, Coupon]),
        &[AskCost, AskChange, AskSplit],
    ),
    grammar(
        Travel,
        &[Drive],
        (0, 3, &[DriveOn, Further]),
        &[AskFar, AskRemaining, AskRestSpeed],
    ),
    grammar(Travel, &[Pace], (0, 1, &[Faster]), &[AskSpeed, AskFarIn]),
    grammar(Mixture, &[Ratio], (1, 1, &[InAll]), &[AskFirst, AskSecond]),
    grammar(Mixture, &[Ratio], (1, 1, &[FirstIs]), &[AskSecond, AskBoth]),
    grammar(Mixture, &[Ratio], (1, 1, &[SecondIs]), &[AskFirst, AskBoth]),
];

/// What training never sees.
const HELD_OUT: [(Setting, &[Clause]); 11] = [
    (Stock, &[Start, Gain, Lose, Gain, AskNow]),
    (Stock, &[Start, Lose, Gain, AskShare]),
    (Stock, &[Boxes, Gain, Lose, AskNow]),
    (Things, &[Start, Fewer, AskTotal]),
    (Ages, &[Start, Times, Fewer, AskLast]),
    (Prices, &[Start, More, AskTotal]),
    (Ways, &[Start, Times, AskTotal]),
    (Shop, &[Buy, Coupon, AskChange]),
    (Shop, &[Buy, Coupon, AskSplit]),
    (Travel, &[Drive, Further, AskRemaining]),
    (Mixture, &[Ratio, SecondIs, AskBoth]),
];

/// All templates, in a fixed order; each is told in both languages.
pub(super) static TEMPLATES: LazyLock<Vec<Template>> =
    LazyLock::new(|| GRAMMARS.iter().flat_map(Grammar::templates).collect());

/// The templates of one side by setting and number of steps, the shorter ones twice: long ones are most of the arrangements
/// and should not be most of the problems.
pub(super) fn by_setting_and_steps(held_out: bool) -> Vec<Vec<Vec<&'static Template>>> {
    let mut groups: BTreeMap<Setting, BTreeMap<usize, Vec<&Template>>> = BTreeMap::new();
    for template in TEMPLATES.iter().filter(|t| t.held_out == held_out) {
        let lengths = groups.entry(template.setting).or_default();
        lengths.entry(template.steps).or_default().push(template);
    }
    let weighed = |(steps, templates): (usize, Vec<_>)| {
        let weight = if steps < *STEPS.end() { 2 } else { 1 };
        std::iter::repeat_n(templates, weight)
    };
    let lengths = groups.into_values();
    lengths
        .map(|group| group.into_iter().flat_map(weighed).collect())
        .collect()
}

impl Grammar {
    fn templates(&self) -> Vec<Template> {
        let (least, most, middles) = self.middles;
        let mut arrangements = vec![Vec::new()];
        let mut longest = arrangements.clone();
        for _ in 0..most {
            let longer = longest.iter().flat_map(|arrangement| {
                middles
                    .iter()
                    .map(|&middle| [arrangement.as_slice(), &[middle]].concat())
            });
            longest = longer.collect();
            arrangements.extend(longest.iter().cloned());
        }
        arrangements.retain(|middle: &Vec<Clause>| middle.len() >= least && is_told_once(middle));
        let mut templates = Vec::new();
        for &opening in self.openings {
            for middle in &arrangements {
                for &ending in self.endings {
                    let clauses = [&[opening], middle.as_slice(), &[ending]].concat();
                    let steps = steps(&clauses);
                    if STEPS.contains(&steps) {
                        templates.push(Template {
                            id: name(self.setting, &clauses),
                            held_out: HELD_OUT.contains(&(self.setting, &clauses)),
                            setting: self.setting,
                            clauses,
                            steps,
                        });
                    }
                }
            }
        }
        templates
    }
}

/// Two of these would leave the numbers of three digits too often.
fn is_told_once(middle: &[Clause]) -> bool {
    let count = |clause| middle.iter().filter(|&&other| other == clause).count();
    [Times, Part, Coupon, BuyToo, DriveOn]
        .into_iter()
        .all(|clause| count(clause) <= 1)
}

/// Operations that a solution needs.
fn steps(clauses: &[Clause]) -> usize {
    let compared = clauses.iter().filter(|clause| {
        let comparisons = [More, Fewer, Times, Part];
        comparisons.contains(clause)
    });
    let compared = compared.count();
    let of = |clause: &Clause| match clause {
        Start | Ratio | AskNow | AskLast | AskCost | AskFar | AskSpeed => 0,
        BuyToo | DriveOn | InAll | AskRestSpeed | AskBoth => 2,
        AskTotal => compared,
        _ => 1,
    };
    clauses.iter().map(of).sum()
}

fn name(setting: Setting, clauses: &[Clause]) -> String {
    let words = clauses.iter().map(|clause| format!("{clause:?}"));
    let words: Vec<String> = std::iter::once(format!("{setting:?}"))
        .chain(words)
        .collect();
    words.join("-").to_lowercase()
}
