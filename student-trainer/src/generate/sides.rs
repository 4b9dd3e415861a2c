//! Provides who answers: a student, its base, a teacher by address, or several of them beside each other.

use distill_model::answers::{Asked, Heard, Written};

use super::{Question, Switch, Writer, remote::RemoteTeacher};
use crate::Result;

/// One who answers.
pub(super) struct Side<'a> {
    /// What it is called.
    pub name: &'static str,
    who: Who<'a>,
}

#[derive(Clone, Copy)]
enum Who<'a> {
    /// The student, and whether its adapter is to be on where that is switched.
    Student(&'a Writer<'a>, Option<(&'a Switch, bool)>),
    Teacher(&'a RemoteTeacher),
}

/// Who answers, in the order of the columns: with `compare` the base and its adapter, or the student without one, and the teacher.
pub(super) fn sides<'a>(
    student: Option<(&'a Writer<'a>, Option<&'a Switch>)>,
    teacher: Option<&'a RemoteTeacher>,
    compare: bool,
) -> Vec<Side<'a>> {
    let side = |name, who| Side { name, who };
    let mut sides = match student {
        None => Vec::new(),
        Some((writer, Some(switch))) if compare => [("base", false), ("adapter", true)]
            .map(|(name, on)| side(name, Who::Student(writer, Some((switch, on)))))
            .into(),
        Some((writer, _)) => vec![side("student", Who::Student(writer, None))],
    };
    sides.extend(teacher.map(|teacher| side("teacher", Who::Teacher(teacher))));
    sides
}

impl Side<'_> {
    /// Whether it is a teacher by address.
    pub fn is_teacher(&self) -> bool {
        matches!(self.who, Who::Teacher(_))
    }

    /// Answers every question, in their order, as [`Writer::write`]; the first one draws by `seed`, the others by those after it.
    ///
    /// # Errors
    /// As [`Writer::write`] and [`RemoteTeacher::write`].
    pub fn write(
        &self,
        questions: &[Question],
        seed: u64,
        each: &mut dyn FnMut(Heard<'_>) -> Result<bool>,
    ) -> Result<Vec<Written>> {
        let (writer, switch) = match self.who {
            Who::Teacher(teacher) => return teacher.write(questions, seed, each),
            Who::Student(writer, switch) => (writer, switch),
        };
        if let Some((switch, on)) = switch {
            switch.put(on)?;
        }
        let asked = questions.iter().zip(0..).map(|(question, number)| Asked {
            ids: question.ids.clone(),
            seed: seed.wrapping_add(number),
        });
        writer.write(&asked.collect::<Vec<_>>(), each)
    }
}
