/*! Provides the main job from end to end: for every task a teacher, students trained on its blocks with several losses, and what
the judge says of these.

```text
 corpus ──> teacher-server serve ──gRPC──> student-trainer ablate ──> table, report.html, results.json
                                             └── train CE, train CE + KL, ..., controls, each with several seeds
```

Both programs run as processes of their own, as they do for users; nothing here reaches into them.
*/

mod process;
mod task;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use distill_program::{
    FileError, console, files,
    lock::{Attempt, Lock},
    output,
};
use serde_json::{Value, json};

pub use process::end_programs;
pub use task::{Job, Programs, Task};

use crate::{Error, Result};
use process::TeacherServer;

/// Of a finished run.
const SUMMARY: &str = "summary.json";
/// Taken by who is at work.
const LOCK: &str = "lock";
/// What the tasks read.
pub(crate) const CORPUS: &str = "corpus";

/// What the judge said of one task.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The task's.
    pub name: &'static str,
    /// What was asked.
    pub question: String,
    /// The table with what may be claimed, as Markdown.
    pub table: String,
    /// `results.json` of the judge.
    pub results: Value,
    /// The page with curves and plans.
    pub page: PathBuf,
    /// Tokens in a second of the teacher's computing.
    pub teacher_tokens_per_second: f64,
    /// Bytes of a frame for each of its tokens.
    pub bytes_per_token: f64,
}

/// Everything that a run found.
#[derive(Clone, Debug)]
pub struct Summary {
    /// In the order of the tasks.
    pub answers: Vec<Answer>,
    /// What it took.
    pub took: Duration,
}

impl Summary {
    fn to_json(&self) -> Value {
        let answer = |answer: &Answer| {
            json!({
                "name": answer.name,
                "question": answer.question,
                "results": answer.results,
                "teacher_tokens_per_second": answer.teacher_tokens_per_second,
                "bytes_per_token": answer.bytes_per_token,
            })
        };
        let answers: Vec<Value> = self.answers.iter().map(answer).collect();
        json!({"seconds": self.took.as_secs_f64(), "tasks": answers})
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for answer in &self.answers {
            writeln!(f, "{}\n\n{}", answer.question, answer.table)?;
        }
        for answer in &self.answers {
            writeln!(f, "{}", answer.page.display())?;
        }
        let seconds = self.took.as_secs();
        write!(f, "{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Keeps other runs out of `out`, as long as the lock lives.
fn take(out: &Path) -> Result<Lock> {
    files::create_directory(out)?;
    match Lock::take(&out.join(LOCK))? {
        Attempt::Taken(lock) => Ok(lock),
        Attempt::HeldBy(holder) => Err(Error::Job(format!(
            "{holder} works in {}; wait for it or stop it, or name another directory with --out",
            out.display()
        ))),
    }
}

/// Whether a run may be in `out`: a new or an empty directory, or one in which a run was stopped or has failed.
///
/// # Errors
/// It holds a finished run, or somebody's other files.
pub fn check_out(out: &Path) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::Job(format!(
            "{} holds {what}; name a new directory with --out, or remove it",
            out.display()
        )))
    };
    if out.join(SUMMARY).exists() {
        return refuse("an earlier run".to_owned());
    }
    if !out.exists() {
        return Ok(());
    }
    for path in files::list(out)? {
        let is_task =
            path.join(process::PORT_FILE).exists() || path.join(process::LOG_FILE).exists();
        let name = path.file_name().unwrap_or_default();
        if name != CORPUS && name != LOCK && !is_task {
            return refuse(format!("{}, which no run wrote", name.display()));
        }
    }
    Ok(())
}

/// Runs the job in its directory, as [`check_out`] allows it; what an earlier attempt left there is made anew.
///
/// # Errors
/// Another run that is at work there; a program that fails, with its command; a file that cannot be read or written.
pub fn run(job: &Job) -> Result<Summary> {
    let started = Instant::now();
    check_out(&job.out)?;
    let _lock = take(&job.out)?;
    let (sender, answers) = mpsc::channel();
    let mut answers = thread::scope(|scope| {
        for (at, task) in job.tasks.iter().enumerate() {
            let sender = sender.clone();
            // Nobody hears of a second failure.
            scope.spawn(move || drop(sender.send((at, ask(job, task)))));
        }
        drop(sender);
        let answers = answers.iter().map(|(at, answer)| Ok((at, answer?)));
        // One that fails takes the others with it, and its error is the one to tell.
        let answers = answers.collect::<Result<Vec<_>>>();
        answers.inspect_err(|_| end_programs())
    })?;
    answers.sort_by_key(|(at, _)| *at);
    let summary = Summary {
        answers: answers.into_iter().map(|(_, answer)| answer).collect(),
        took: started.elapsed(),
    };
    let path = job.out.join(SUMMARY);
    let text = format!("{:#}\n", summary.to_json());
    output::write(&path, text.as_bytes())?;
    Ok(summary)
}

/// Lets the judge answer one task.
fn ask(job: &Job, task: &Task) -> Result<Answer> {
    let out = job.out.join(task.name);
    if out.exists() {
        say(&format!(
            "removing what an earlier attempt left in {}",
            out.display()
        ));
        fs::remove_dir_all(&out).map_err(FileError::at("remove", &out))?;
    }
    files::create_directory(&out)?;
    say(&format!("{}: starting the teacher", task.name));
    let teacher = TeacherServer::start(&job.programs, task, &out)?;
    let arms = out.join("arms.toml");
    output::write(&arms, task.arms_at(&teacher.address).as_bytes())?;
    let ablation = out.join("ablation");
    let args = [
        "ablate",
        &path_text(&arms),
        "--out",
        &path_text(&ablation),
        "--jobs",
        &task.jobs.to_string(),
        "--json",
    ];
    let results = process::run_json(&job.programs.student_trainer, &args.map(str::to_owned))?;
    let done = teacher.stop()?;
    let table = ablation.join("table.md");
    Ok(Answer {
        name: task.name,
        question: task.question.clone(),
        table: fs::read_to_string(&table).map_err(FileError::at("read", &table))?,
        results,
        page: ablation.join("report.html"),
        teacher_tokens_per_second: done.tokens_per_second,
        bytes_per_token: done.bytes_per_token,
    })
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn say(line: &str) {
    console::say(format_args!("quickstart: {line}"));
}

/// Where the two programs are, beside this one.
///
/// # Errors
/// One of them is missing, with the command that builds it.
pub fn programs(directory: Option<PathBuf>) -> Result<Programs> {
    let directory = match directory {
        Some(directory) => directory,
        None => {
            let own = std::env::current_exe();
            let own = own.map_err(FileError::at("find", Path::new("this program")))?;
            own.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    let find = |name: &str| {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::Job(format!(
            "there is no {name} in {}; build it with `cargo build --release -p {name}`",
            directory.display()
        )))
    };
    Ok(Programs {
        teacher_server: find("teacher-server")?,
        student_trainer: find("student-trainer")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_does_not_burn_its_directory_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        check_out(&out).unwrap();
        for part in ["corpus", "few", "few/ablation"] {
            fs::create_dir_all(out.join(part)).unwrap();
        }
        fs::write(out.join("few").join(process::LOG_FILE), "").unwrap();
        check_out(&out).unwrap();
        for (name, word) in [
            ("thesis.tex", "thesis.tex"),
            ("summary.json", "earlier run"),
        ] {
            fs::write(out.join(name), "").unwrap();
            let message = check_out(&out).unwrap_err().to_string();
            assert!(
                message.contains(word) && message.contains("--out"),
                "{message}"
            );
        }
    }
}
