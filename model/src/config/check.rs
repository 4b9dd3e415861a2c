//! Provides what every check of a field shares: the complaint that names it, and ranges.

/// What is wrong with one field; the caller adds the path.
pub(super) struct Problem {
    pub(super) field: &'static str,
    pub(super) problem: String,
}

pub(super) fn problem<T>(field: &'static str, problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem {
        field,
        problem: problem.into(),
    })
}

pub(super) fn required(
    field: &'static str,
    value: Option<usize>,
    max: usize,
) -> Result<usize, Problem> {
    match value {
        None => problem(field, "missing"),
        Some(value) if (1..=max).contains(&value) => Ok(value),
        Some(value) => problem(field, format!("{value} is outside 1..={max}")),
    }
}

pub(super) fn within(field: &'static str, value: f64, min: f64, max: f64) -> Result<f64, Problem> {
    // NaN is in no range, so it is refused too.
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        problem(field, format!("{value} is outside {min}..={max}"))
    }
}
