/*! Provides one operation worked out on paper: a chain of equal expressions, each a small step from the one before.

```text
 247+385=547+85=627+5=632      23×7=140+21=161
 632-385=332-85=252-5=247      168÷7=(140+28)÷7=20+4=24
```

A small model must be able to follow, so every expression needs one digit of one operand at a time, and operations with a
carry or borrow over more than one place are refused.
*/

use std::fmt::Write;

/// Largest number anywhere in a problem.
pub(super) const VALUE_MAX: u32 = 999;

/// One of the four operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Operation {
    pub fn sign(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '×',
            Self::Divide => '÷',
        }
    }
}

/// `left operation right`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Equation {
    left: u32,
    operation: Operation,
    right: u32,
    result: u32,
}

impl Equation {
    /// The operation with its result; `None` where the result is no natural number up to [`VALUE_MAX`] or the steps to
    /// it are not all simple.
    pub fn new(left: u32, operation: Operation, right: u32) -> Option<Self> {
        let result = match operation {
            Operation::Add => left.checked_add(right)?,
            Operation::Subtract => left.checked_sub(right)?,
            Operation::Multiply => left.checked_mul(right)?,
            Operation::Divide => left.checked_div(right)?,
        };
        let simple = match operation {
            Operation::Add => carries_are_single(left, right),
            Operation::Subtract => borrows_are_single(left, right),
            Operation::Multiply => right < 10 && parts(left).len() <= 2,
            Operation::Divide => result * right == left && right < 10 && parts(result).len() <= 2,
        };
        let equation = Self {
            left,
            operation,
            right,
            result,
        };
        (simple && result >= 1 && left.max(right).max(result) <= VALUE_MAX).then_some(equation)
    }

    pub fn result(&self) -> u32 {
        self.result
    }

    /// The operation alone, its first operand by the name of an earlier result where it is one.
    pub fn stated(&self, earlier: &[(u32, char)]) -> String {
        let Self {
            left,
            operation,
            right,
            ..
        } = *self;
        let sign = operation.sign();
        match earlier.iter().rfind(|(result, _)| *result == left) {
            Some((_, name)) => format!("{name}{sign}{right}"),
            None => format!("{left}{sign}{right}"),
        }
    }

    /// The chain from the operation to its result.
    pub fn worked(&self) -> String {
        let Self {
            left,
            right,
            result,
            ..
        } = *self;
        match self.operation {
            Operation::Add => by_places(self, |value, part| value + part),
            Operation::Subtract => by_places(self, |value, part| value - part),
            Operation::Multiply => match parts(left)[..] {
                [tens, ones] => {
                    let (tens, ones) = (tens * right, ones * right);
                    format!("{left}×{right}={tens}+{ones}={result}")
                }
                _ => format!("{left}×{right}={result}"),
            },
            Operation::Divide => match parts(result)[..] {
                [tens, ones] => {
                    let dividends = format!("({}+{})", tens * right, ones * right);
                    format!("{left}÷{right}={dividends}÷{right}={tens}+{ones}={result}")
                }
                _ => format!("{left}÷{right}={result}"),
            },
        }
    }
}

/// Takes the second operand into the first place by place, from the highest.
fn by_places(equation: &Equation, step: impl Fn(u32, u32) -> u32) -> String {
    let (left, right, sign) = (equation.left, equation.right, equation.operation.sign());
    let mut chain = format!("{left}{sign}{right}");
    let (mut value, mut rest) = (left, right);
    for part in parts(right) {
        value = step(value, part);
        rest -= part;
        // Writing to a `String` cannot fail.
        let _ = match rest {
            0 => write!(chain, "={value}"),
            _ => write!(chain, "={value}{sign}{rest}"),
        };
    }
    chain
}

/// The non-zero decimal places of a number, from the highest: 305 is 300 and 5.
fn parts(number: u32) -> Vec<u32> {
    [number / 100 * 100, number / 10 % 10 * 10, number % 10]
        .into_iter()
        .filter(|&part| part > 0)
        .collect()
}

/// Whether no carry meets a nine, so that it stops at the next place.
fn carries_are_single(left: u32, right: u32) -> bool {
    let mut value = left;
    parts(right).into_iter().all(|part| {
        let place = leading_place(part);
        let carry = value / place % 10 + part / place >= 10;
        let ripple = carry && value / (place * 10) % 10 == 9;
        value += part;
        !ripple
    })
}

/// Whether no borrow meets a zero, so that it stops at the next place.
fn borrows_are_single(left: u32, right: u32) -> bool {
    let mut value = left;
    parts(right).into_iter().all(|part| {
        let place = leading_place(part);
        let borrow = value / place % 10 < part / place;
        let ripple = borrow && (value / (place * 10)).is_multiple_of(10);
        value = value.saturating_sub(part);
        !ripple
    })
}

fn leading_place(part: u32) -> u32 {
    match part {
        100.. => 100,
        10.. => 10,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::{Equation, Operation::*};

    #[test]
    fn chains_are_worked_place_by_place() {
        let worked = |left, operation, right| {
            let equation = Equation::new(left, operation, right);
            equation.map(|equation| equation.worked())
        };
        let some = |chain: &str| Some(chain.to_owned());
        assert_eq!(worked(247, Add, 385), some("247+385=547+85=627+5=632"));
        assert_eq!(worked(632, Subtract, 385), some("632-385=332-85=252-5=247"));
        assert_eq!(worked(23, Multiply, 7), some("23×7=140+21=161"));
        assert_eq!(worked(40, Multiply, 7), some("40×7=280"));
        assert_eq!(worked(168, Divide, 7), some("168÷7=(140+28)÷7=20+4=24"));
        assert_eq!(worked(56, Divide, 7), some("56÷7=8"));
        assert_eq!(worked(8, Add, 5), some("8+5=13"));
    }

    #[test]
    fn what_is_not_simple_is_refused() {
        for (left, operation, right) in [
            (197, Add, 5),
            (302, Subtract, 5),
            (3, Subtract, 5),
            (5, Subtract, 5),
            (50, Divide, 7),
            (50, Divide, 0),
            (999, Add, 1),
            (123, Multiply, 4),
            (23, Multiply, 12),
            (800, Multiply, 2),
        ] {
            let equation = Equation::new(left, operation, right);
            assert_eq!(equation, None, "{left} {operation:?} {right}");
        }
    }
}
