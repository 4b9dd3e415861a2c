//! Provides the numbers of a problem: operands that fit the clauses, and the equations that lead to the answer.

use super::{
    arithmetic::{Equation, Operation, VALUE_MAX},
    random::{Random, mix},
    template::{Clause, Setting, Template},
};
use crate::{Error, Result};

/// Draws before a template counts as impossible; the rarest fits once in some hundred.
const ATTEMPTS_MAX: u32 = 100_000;
/// Longest worked solution in characters without its answer line, which bounds the sequences.
const WORKED_CHARS_MAX: usize = 64;
/// Largest age that a person, or all persons together, may have.
const AGE_MAX: u32 = 120;
/// One in so many operand tuples is kept out of training.
const HELD_OUT_ONE_IN: u64 = 8;

/// A clause with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub clause: Clause,
    /// In the order of the clause's placeholders `{0}` and `{1}`; 0 where there is none.
    pub numbers: [u32; 2],
}

/// A template with numbers, their equations and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Story {
    pub facts: Vec<Fact>,
    pub equations: Vec<Equation>,
    pub answer: u32,
}

impl Story {
    /// Draws until all numbers fit and the operands are on the wanted side of the partition.
    pub fn draw(template: &Template, held_out_numbers: bool, random: &mut Random) -> Result<Self> {
        (0..ATTEMPTS_MAX)
            .find_map(|_| {
                let story = Telling::new(template.setting, random).tell(&template.clauses)?;
                (story.has_held_out_numbers() == held_out_numbers).then_some(story)
            })
            .ok_or(Error::Undrawable {
                template: template.id.clone(),
                attempts: ATTEMPTS_MAX,
            })
    }

    /// On which side of the partition the operands are: it depends on the numbers alone, so a tuple kept out of one
    /// template is kept out of all.
    pub fn has_held_out_numbers(&self) -> bool {
        let operands = self.operands();
        operands.fold(0, |hash, operand| mix(hash ^ u64::from(operand))) % HELD_OUT_ONE_IN == 0
    }

    /// The numbers of the text, in order.
    pub fn operands(&self) -> impl Iterator<Item = u32> {
        let numbers = self.facts.iter().flat_map(|fact| fact.numbers);
        numbers.filter(|&number| number > 0)
    }

    /// One chain of equations a line.
    pub fn worked(&self) -> String {
        let chains: Vec<String> = self.equations.iter().map(Equation::worked).collect();
        chains.join("\n")
    }

    /// What is to be computed, without any result: `a=37×4;b=a÷4`.
    pub fn stated(&self) -> String {
        let mut results = Vec::new();
        let mut parts = Vec::new();
        for (equation, name) in self.equations.iter().zip('a'..) {
            parts.push(format!("{name}={}", equation.stated(&results)));
            results.push((equation.result(), name));
        }
        parts.join(";")
    }
}

/// A story while it is told.
struct Telling<'a> {
    random: &'a mut Random,
    story: Story,
    /// What the next clause works on.
    current: u32,
    /// What the compared ones have, in order.
    each: Vec<u32>,
    ratio: [u32; 2],
    /// Largest number that makes sense.
    largest: u32,
}

impl<'a> Telling<'a> {
    fn new(setting: Setting, random: &'a mut Random) -> Self {
        let story = Story {
            facts: Vec::new(),
            equations: Vec::new(),
            answer: 0,
        };
        Self {
            random,
            story,
            current: 0,
            each: Vec::new(),
            ratio: [1, 1],
            largest: match setting {
                Setting::Ages => AGE_MAX,
                _ => VALUE_MAX,
            },
        }
    }

    /// `None` where the numbers drawn do not fit.
    fn tell(mut self, clauses: &[Clause]) -> Option<Story> {
        for &clause in clauses {
            let numbers = self.clause(clause)?;
            self.story.facts.push(Fact { clause, numbers });
            self.each.push(self.current);
        }
        self.story.answer = self.current;
        let fits = self.story.worked().chars().count() <= WORKED_CHARS_MAX;
        fits.then_some(self.story)
    }

    /// Draws the clause's numbers and works its operations.
    fn clause(&mut self, clause: Clause) -> Option<[u32; 2]> {
        use Clause::*;
        use Operation::*;
        match clause {
            Start => {
                self.current = self.amount();
                Some([self.current, 0])
            }
            Gain | More | One | Further | AskLater | Faster => self.amount_of_change(Add),
            Lose | Fewer | Coupon => self.amount_of_change(Subtract),
            Times => self.factor(Multiply, 9),
            AskFarIn => self.factor(Multiply, 9),
            Part => self.factor(Divide, 5),
            AskShare | AskSplit => self.factor(Divide, 9),
            AskNow | AskLast | AskCost | AskFar | AskSpeed => Some([0, 0]),
            AskTotal => self.total(),
            Boxes | Buy | Drive => self.product(),
            BuyToo | DriveOn => self.further_product(),
            Pace => self.pace(),
            AskChange => self.change(),
            AskRemaining => self.remaining(),
            AskRestSpeed => self.rest_speed(),
            Ratio => self.draw_ratio(),
            InAll => self.share_of_all(),
            FirstIs => self.share_of(0),
            SecondIs => self.share_of(1),
            AskFirst => self.work(Multiply, self.ratio[0]).map(|()| [0, 0]),
            AskSecond => self.work(Multiply, self.ratio[1]).map(|()| [0, 0]),
            AskBoth => self.both(),
        }
    }

    fn amount(&mut self) -> u32 {
        match self.random.below(4) {
            0 if self.largest > AGE_MAX => self.random.between(100, VALUE_MAX),
            _ => self.random.between(11, 99.min(self.largest / 2)),
        }
    }

    fn equation(&mut self, left: u32, operation: Operation, right: u32) -> Option<u32> {
        let equation = Equation::new(left, operation, right)
            .filter(|equation| equation.result() <= self.largest)?;
        self.story.equations.push(equation);
        Some(equation.result())
    }

    fn work(&mut self, operation: Operation, right: u32) -> Option<()> {
        self.current = self.equation(self.current, operation, right)?;
        Some(())
    }

    fn amount_of_change(&mut self, operation: Operation) -> Option<[u32; 2]> {
        let number = match self.random.below(5) {
            0 => self.random.between(2, 9),
            1 => self.random.between(100, 599),
            _ => self.random.between(11, 99),
        };
        self.work(operation, number)?;
        Some([number, 0])
    }

    fn factor(&mut self, operation: Operation, largest: u32) -> Option<[u32; 2]> {
        let number = self.random.between(2, largest);
        self.work(operation, number)?;
        Some([number, 0])
    }

    /// So many each, so many times.
    fn product(&mut self) -> Option<[u32; 2]> {
        let each = self.random.between(3, 99);
        let times = self.random.between(2, 9);
        self.current = self.equation(each, Operation::Multiply, times)?;
        Some([each, times])
    }

    fn further_product(&mut self) -> Option<[u32; 2]> {
        let before = self.current;
        let numbers = self.product()?;
        self.current = self.equation(before, Operation::Add, self.current)?;
        Some(numbers)
    }

    fn pace(&mut self) -> Option<[u32; 2]> {
        let speed = self.random.between(6, 99);
        let hours = self.random.between(2, 9);
        self.current = self.equation(speed * hours, Operation::Divide, hours)?;
        Some([speed * hours, hours])
    }

    fn total(&mut self) -> Option<[u32; 2]> {
        let each = std::mem::take(&mut self.each);
        let (first, rest) = each.split_first()?;
        self.current = *first;
        for &number in rest {
            self.work(Operation::Add, number)?;
        }
        Some([0, 0])
    }

    fn change(&mut self) -> Option<[u32; 2]> {
        let paid = 50 * self.random.between(1, 12);
        self.current = self.equation(paid, Operation::Subtract, self.current)?;
        Some([paid, 0])
    }

    fn remaining(&mut self) -> Option<[u32; 2]> {
        let whole = self.random.between(self.current + 2, VALUE_MAX);
        self.current = self.equation(whole, Operation::Subtract, self.current)?;
        Some([whole, 0])
    }

    fn rest_speed(&mut self) -> Option<[u32; 2]> {
        let hours = self.random.between(2, 9);
        let whole = self.current + hours * self.random.between(6, 99);
        self.current = self.equation(whole, Operation::Subtract, self.current)?;
        self.work(Operation::Divide, hours)?;
        Some([whole, hours])
    }

    fn draw_ratio(&mut self) -> Option<[u32; 2]> {
        self.ratio = [self.random.between(2, 7), self.random.between(2, 7)];
        let [first, second] = self.ratio;
        let reduced = (2..=first).all(|common| first % common > 0 || second % common > 0);
        (reduced && first + second < 10).then_some(self.ratio)
    }

    fn share_of_all(&mut self) -> Option<[u32; 2]> {
        let parts = self.equation(self.ratio[0], Operation::Add, self.ratio[1])?;
        self.current = parts * self.random.between(2, 99);
        let all = self.current;
        self.work(Operation::Divide, parts)?;
        Some([all, 0])
    }

    fn share_of(&mut self, kind: usize) -> Option<[u32; 2]> {
        let parts = self.ratio[kind];
        self.current = parts * self.random.between(2, 99);
        let number = self.current;
        self.work(Operation::Divide, parts)?;
        Some([number, 0])
    }

    fn both(&mut self) -> Option<[u32; 2]> {
        let parts = self.equation(self.ratio[0], Operation::Add, self.ratio[1])?;
        self.work(Operation::Multiply, parts)?;
        Some([0, 0])
    }
}
