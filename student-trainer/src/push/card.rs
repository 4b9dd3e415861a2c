//! Provides the model card of a push: front matter for the hub, and the report of the run below it.

use std::path::Path;

use crate::{
    Result, report,
    run::{DISTILLED, TeacherRecord, front_matter},
};

/// The card of what a run made, `name`, from `base`.
///
/// # Errors
/// A run that cannot be read.
pub(super) fn of_run(run: &Path, name: &str, base: Option<&str>, library: &str) -> Result<String> {
    let tags: &[&str] = if TeacherRecord::read(run)?.is_some() {
        &DISTILLED
    } else {
        &[]
    };
    let front = front_matter(base, Some(library), tags);
    Ok(format!("{front}\n{}", report::for_card(run, name, base)?))
}

/// The card of an exported model, of which no more is known.
pub(super) fn of_export(name: &str, base: Option<&str>, library: Option<&str>) -> String {
    let made = base.map_or_else(String::new, |base| format!(" from `{base}`"));
    format!(
        "{}\n# {name}\n\nMade{made} by `student-trainer export` {}.\n",
        front_matter(base, library, &[]),
        env!("CARGO_PKG_VERSION")
    )
}
