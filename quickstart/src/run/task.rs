//! Provides what is compared: a teacher, a student, what they read, and the losses that are set against each other.

use std::path::PathBuf;

use toml::{Table, Value};

/// The two programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Path of teacher-server.
    pub teacher_server: PathBuf,
    /// Path of student-trainer.
    pub student_trainer: PathBuf,
}

/// One question to the judge, `student-trainer ablate`.
#[derive(Clone, Debug)]
pub struct Task {
    /// Of its directory, and of its lines while it runs.
    pub name: &'static str,
    /// What is asked, for people.
    pub question: String,
    /// The teacher's directory.
    pub teacher: PathBuf,
    /// The student's directory.
    pub student: PathBuf,
    /// What the teacher speaks about.
    pub corpus: Vec<PathBuf>,
    /// Further flags of `teacher-server serve`.
    pub serve: Vec<String>,
    /// What `ablate` reads, but for the teacher's address and the student.
    pub arms: Table,
    /// Students that are trained side by side.
    pub jobs: usize,
}

impl Task {
    /// The file of arms, with a teacher at `address`.
    pub(super) fn arms_at(&self, address: &str) -> String {
        let mut arms = self.arms.clone();
        let base = arms.entry("base").or_insert(Value::Table(Table::new()));
        if let Value::Table(base) = base {
            let student = self.student.display().to_string();
            base.insert("teacher".to_owned(), Value::from(address));
            base.insert("student".to_owned(), Value::from(student));
        }
        arms.to_string()
    }
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where everything is written.
    pub out: PathBuf,
    /// The programs.
    pub programs: Programs,
    /// What is asked; side by side.
    pub tasks: Vec<Task>,
}
