//! Provides the report's answers: what the student wrote after a few prompts before it was trained, and after.

use distill_report::{Answer, Answered, Block};

use super::read::Run;
use crate::{
    generate::{Finish, Written},
    train::ANSWER_TOKENS_MAX,
};

/// Every prompt once, with what each run made of it.
pub(super) fn answers(runs: &[Run]) -> Vec<Block> {
    let mut asked: Vec<Answered> = Vec::new();
    for run in runs {
        let whose = |when: &str| {
            if runs.len() > 1 {
                format!("{}, {when}", run.name)
            } else {
                when.to_owned()
            }
        };
        for sample in &run.samples {
            let place = asked.iter().position(|one| one.prompt == sample.prompt);
            let place = place.unwrap_or_else(|| {
                asked.push(Answered {
                    prompt: sample.prompt.clone(),
                    answers: vec![Answer {
                        name: "expected".to_owned(),
                        text: sample.reference.clone(),
                    }],
                });
                asked.len() - 1
            });
            let given = [
                ("before training", &sample.before),
                ("after training", &sample.after),
            ];
            let given = given.into_iter().filter_map(|(when, written)| {
                Some(Answer {
                    name: whose(when),
                    text: text(written.as_ref()?),
                })
            });
            asked[place].answers.extend(given);
        }
    }
    if asked.is_empty() {
        return Vec::new();
    }
    vec![
        Block::Note(format!(
            "The likeliest token every time, {ANSWER_TOKENS_MAX} tokens at most; `answers.json` holds them."
        )),
        Block::Answers(asked),
    ]
}

/// What was written; with dots where it was cut.
fn text(written: &Written) -> String {
    match written.finish {
        Finish::Length => format!("{} …", written.text),
        _ => written.text.clone(),
    }
}
