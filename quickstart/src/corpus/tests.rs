//! Provides the tests of the problems: an evaluator of its own checks every equation.

use std::collections::{BTreeSet, HashSet};

use super::{
    Language, Problem, Sizes, Split, answer_in, english, generate, random::Random, read_problems,
    story::Story, template::TEMPLATES, write_corpus,
};

const SEED: u64 = 7;

/// Value of an expression with `+ - × ÷` and parentheses, in exact fractions (numerator, denominator).
fn evaluate(expression: &str) -> (i64, i64) {
    let mut parser = Parser(expression.chars().collect(), 0);
    let value = parser.sum();
    assert_eq!(parser.1, parser.0.len(), "left over in {expression}");
    value
}

struct Parser(Vec<char>, usize);

impl Parser {
    fn take(&mut self, wanted: &[char]) -> Option<char> {
        let found = self.0.get(self.1).copied().filter(|c| wanted.contains(c));
        self.1 += usize::from(found.is_some());
        found
    }

    fn sum(&mut self) -> (i64, i64) {
        let (mut n, mut d) = self.product();
        while let Some(sign) = self.take(&['+', '-']) {
            let (m, e) = self.product();
            n = if sign == '+' {
                n * e + m * d
            } else {
                n * e - m * d
            };
            d *= e;
        }
        (n, d)
    }

    fn product(&mut self) -> (i64, i64) {
        let (mut n, mut d) = self.atom();
        while let Some(sign) = self.take(&['×', '÷']) {
            let (m, e) = self.atom();
            (n, d) = if sign == '×' {
                (n * m, d * e)
            } else {
                (n * e, d * m)
            };
        }
        (n, d)
    }

    fn atom(&mut self) -> (i64, i64) {
        if self.take(&['(']).is_some() {
            let value = self.sum();
            assert_eq!(self.take(&[')']), Some(')'));
            return value;
        }
        let mut number = String::new();
        while let Some(digit) = self.take(&['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
            number.push(digit);
        }
        (number.parse().expect("a number"), 1)
    }
}

fn numbers(text: &str) -> Vec<u32> {
    let runs = text.split(|c: char| !c.is_ascii_digit());
    runs.filter_map(|run| run.parse().ok()).collect()
}

fn all(split: Split) -> Vec<Problem> {
    generate(split, 3000, SEED).expect("problems")
}

#[test]
fn the_evaluator_evaluates() {
    assert_eq!(evaluate("2+3×4-6"), (8, 1));
    let (n, d) = evaluate("(140+28)÷7");
    assert_eq!(n, 24 * d);
    let (n, d) = evaluate("7÷2");
    assert_ne!(n % d, 0);
}

#[test]
fn every_equation_of_every_solution_is_right() {
    for problem in Split::ALL.into_iter().flat_map(all) {
        let text = format!("{}{}", problem.prompt, problem.completion);
        let lines: Vec<&str> = problem.completion.lines().collect();
        let (last, chains) = lines.split_last().expect("lines");
        assert!((2..=4).contains(&chains.len()), "{text}");
        let mut value = 0;
        for chain in chains {
            let sides: Vec<_> = chain.split('=').map(evaluate).collect();
            assert!(sides.len() >= 2, "{text}");
            for &(n, d) in &sides {
                assert_eq!(n % d, 0, "{text}");
                assert_eq!(n / d, sides[0].0 / sides[0].1, "{text}");
            }
            value = sides[0].0 / sides[0].1;
            assert!(numbers(chain).iter().all(|&number| number <= 999), "{text}");
        }
        assert_eq!(value, i64::from(problem.answer), "{text}");
        assert_eq!(
            *last,
            format!("{}{}", problem.language.answer_label(), value)
        );
        assert_eq!(answer_in(&problem.completion), Some(problem.answer));
    }
}

/// A solution may use only what the text says (fractions are words) and what it worked out before.
#[test]
fn every_operand_comes_from_the_text_or_an_earlier_line() {
    for problem in Split::ALL.into_iter().flat_map(all) {
        let mut known = numbers(&problem.prompt);
        let fractions = [
            "half",
            "third",
            "quarter",
            "fifth",
            "一半",
            "三分之一",
            "四分之一",
            "五分之一",
        ];
        for (index, word) in fractions.iter().enumerate() {
            known.extend(
                problem
                    .prompt
                    .contains(word)
                    .then_some(index as u32 % 4 + 2),
            );
        }
        for chain in problem
            .completion
            .lines()
            .take_while(|line| line.contains('='))
        {
            let sides: Vec<_> = chain.split('=').map(numbers).collect();
            let operands = sides.first().expect("an operation");
            let fits = operands.iter().all(|operand| known.contains(operand));
            assert!(fits, "{chain} in {}{}", problem.prompt, problem.completion);
            known.extend(sides.last().expect("a result"));
        }
    }
}

#[test]
fn sentences_are_complete() {
    for problem in Split::ALL.into_iter().flat_map(all) {
        let prompt = &problem.prompt;
        assert!(
            prompt.ends_with("?\n") || prompt.ends_with("？\n"),
            "{prompt}"
        );
        assert!(
            !prompt.contains(['{', '}']) && !prompt.contains("  "),
            "{prompt}"
        );
        let chinese = prompt
            .chars()
            .any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
        assert_eq!(chinese, problem.language == Language::Chinese, "{prompt}");
    }
}

#[test]
fn all_templates_can_be_told_in_both_languages() {
    let mut random = Random::new(SEED);
    for template in TEMPLATES.iter() {
        let story = Story::draw(template, true, &mut random).expect("a story");
        for language in Language::ALL {
            let problem = Problem::make(template, &story, language, &mut random);
            assert_eq!(problem.completion.lines().count(), template.steps + 1);
        }
    }
    let templates = |split| -> HashSet<String> {
        let problems = generate(split, 20_000, SEED).expect("problems");
        problems.into_iter().map(|p| p.template).collect()
    };
    let held_out = TEMPLATES.iter().filter(|t| t.held_out).count();
    let train = templates(Split::Train);
    assert_eq!(train.len(), TEMPLATES.len() - held_out);
    assert_eq!(templates(Split::HeldoutNumbers), train);
}

#[test]
fn held_out_templates_are_not_in_training() {
    let templates =
        |split| -> HashSet<String> { all(split).into_iter().map(|p| p.template).collect() };
    let held_out: HashSet<String> = TEMPLATES
        .iter()
        .filter(|t| t.held_out)
        .map(|t| t.id.clone())
        .collect();
    assert_eq!(held_out.len(), 11);
    assert_eq!(templates(Split::HeldoutTemplates), held_out);
    assert!(templates(Split::Train).is_disjoint(&held_out));
}

#[test]
fn templates_differ_and_held_out_ones_have_known_clauses() {
    let mut seen = BTreeSet::new();
    let mut known = BTreeSet::new();
    for template in TEMPLATES.iter() {
        assert!(
            seen.insert((template.setting, &template.clauses)),
            "{}",
            template.id
        );
        for &clause in template.clauses.iter().filter(|_| !template.held_out) {
            let patterns = (english::WORDS.patterns)(template.setting, clause);
            assert!(
                !patterns.iter().any(|p| p.is_empty()),
                "{} {clause:?}",
                template.id
            );
            known.insert((template.setting, clause));
        }
    }
    for template in TEMPLATES.iter().filter(|t| t.held_out) {
        for clause in &template.clauses {
            let known = known.contains(&(template.setting, *clause));
            assert!(known, "{} {clause:?}", template.id);
        }
    }
}

#[test]
fn held_out_operands_never_occur_in_training() {
    let mut random = Random::new(SEED);
    let mut sides = [HashSet::new(), HashSet::new()];
    for template in TEMPLATES.iter() {
        for _ in 0..50 {
            for held_out in [false, true] {
                let story = Story::draw(template, held_out, &mut random).expect("a story");
                sides[usize::from(held_out)].insert(story.operands().collect::<Vec<_>>());
            }
        }
    }
    let [train, held_out] = sides;
    assert!(train.is_disjoint(&held_out));
    assert!(train.len() > 1000 && held_out.len() > 1000);
}

#[test]
fn splits_share_no_problem_and_held_out_ones_are_distinct() {
    let prompts = |split| -> Vec<String> { all(split).into_iter().map(|p| p.prompt).collect() };
    let [train, held_out, templates] = Split::ALL.map(prompts);
    let distinct: HashSet<_> = held_out.iter().chain(&templates).collect();
    assert_eq!(distinct.len(), held_out.len() + templates.len());
    assert!(train.iter().all(|prompt| !distinct.contains(prompt)));
}

#[test]
fn the_seed_decides() {
    for split in Split::ALL {
        let problems = all(split);
        assert_eq!(problems, all(split));
        assert_eq!(
            problems[..100],
            generate(split, 100, SEED).expect("problems")
        );
        assert_ne!(problems, generate(split, 3000, SEED + 1).expect("problems"));
    }
}

/// Models are trained and shipped; another order of draws would make their held-out problems others.
#[test]
fn the_first_problem_stays_the_same() {
    let problem = generate(Split::Train, 1, 1).expect("problems").remove(0);
    assert_eq!(problem.completion.lines().next(), Some("22×3=60+6=66"));
    assert!(problem.prompt.starts_with("小红买3个苹果，每个要22元。"));
}

#[test]
fn longer_problems_can_be_left_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let sizes = Sizes {
        train: 300,
        held_out: 50,
        steps_max: 2,
    };
    let paths = write_corpus(dir.path(), sizes, SEED).expect("files");
    let read: Vec<Vec<Problem>> = paths
        .iter()
        .map(|path| read_problems(path).expect("problems"))
        .collect();
    assert!(read[0].len() > 50 && read[0].iter().all(|p| p.steps() == 2));
    assert!(read[1].iter().any(|p| p.steps() > 2), "held-out ones stay");
}

#[test]
fn answers_are_read_from_the_last_line_only() {
    assert_eq!(answer_in("1+2=3\nAnswer: 3"), Some(3));
    assert_eq!(answer_in("1+2=3\n答案：3\n"), Some(3));
    assert_eq!(answer_in("Answer: 3\n1+2=3"), None);
    assert_eq!(answer_in("Answer: three"), None);
    assert_eq!(answer_in(""), None);
}

#[test]
fn both_sides_of_a_pair_tell_the_same_story() {
    let text = |side: &super::pair::Side, range: &str| {
        let (field, range) = range.strip_suffix(']').unwrap().split_once('[').unwrap();
        let (start, end) = range.split_once(':').unwrap();
        let field = if field == "prompt" {
            &side.prompt
        } else {
            &side.completion
        };
        field[start.parse().unwrap()..end.parse().unwrap()].to_owned()
    };
    let made = super::pairs(Split::Train, 300, 1, true).unwrap();
    let mut people = std::collections::HashMap::new();
    for pair in &made {
        assert_eq!(
            numbers(&pair.teacher.prompt).len(),
            numbers(&pair.student.prompt).len(),
            "{pair:?}"
        );
        assert_eq!(answer_in(&pair.teacher.completion), Some(pair.answer));
        assert_eq!(answer_in(&pair.student.completion), Some(pair.answer));
        for link in &pair.shared {
            assert_eq!(
                text(&pair.teacher, &link.teacher),
                text(&pair.student, &link.student)
            );
        }
        assert!(pair.links.len() >= 2, "{pair:?}");
        for link in &pair.links {
            let (ours, theirs) = (
                text(&pair.teacher, &link.teacher),
                text(&pair.student, &link.student),
            );
            if ours.bytes().all(|byte| byte.is_ascii_digit()) {
                assert_eq!(ours, theirs);
            } else if ours.starts_with(|c: char| c.is_uppercase()) {
                // A person has one name in the other language.
                assert_eq!(
                    *people.entry(ours).or_insert_with(|| theirs.clone()),
                    theirs
                );
            }
        }
    }
    assert!(people.len() >= 8, "{people:?}");
    let without = super::pairs(Split::Train, 5, 2, false).unwrap();
    assert!(
        without
            .iter()
            .all(|pair| pair.student.completion.is_empty() && pair.shared.is_empty())
    );
    assert_eq!(
        super::pairs(Split::Train, 5, 1, true).unwrap()[..],
        made[..5]
    );
}

#[test]
fn operations_alone_come_to_the_answer() {
    for problem in Split::ALL.into_iter().flat_map(all) {
        let mut results: Vec<i64> = Vec::new();
        for (part, name) in problem.equations.split(';').zip('a'..) {
            let (left, operation) = part.split_once('=').expect("a name");
            assert_eq!(left, name.to_string(), "{problem:?}");
            let mut expression = operation.to_owned();
            for (result, name) in results.iter().zip('a'..) {
                expression = expression.replace(name, &result.to_string());
            }
            let (n, d) = evaluate(&expression);
            results.push(n / d);
        }
        assert_eq!(
            results.last(),
            Some(&i64::from(problem.answer)),
            "{problem:?}"
        );
    }
}

fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).expect("a file");
    let line = |line| serde_json::from_str(line).expect("JSON");
    text.lines().map(line).collect()
}

#[test]
fn what_the_student_is_to_learn_it_has_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let [teacher, student, ..] = super::write_readings(dir.path()).expect("files");
    let (teacher, student) = (lines(&teacher), lines(&student));
    assert_eq!((teacher.len(), student.len()), (40_000, 19_000));
    let is_chinese = |text: &str| text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
    let text_of = |line: &serde_json::Value| -> String {
        ["text", "prompt", "completion"]
            .map(|field| line[field].as_str().unwrap_or_default().to_owned())
            .concat()
    };
    let is_solved = |text: &str| is_chinese(text) && text.contains("a=");
    let texts: Vec<String> = student.iter().map(text_of).collect();
    let questions = texts
        .iter()
        .filter(|text| is_chinese(text) && !is_solved(text));
    assert_eq!(questions.count(), 1000);
    // A word of a setting that is new to it stands in no Chinese solution that it has read.
    let is_new = |text: &str| is_solved(text) && text.contains("千米");
    assert!(!texts.iter().any(|text| is_new(text)));
    assert!(teacher.iter().any(|line| is_new(&text_of(line))));
    let read: HashSet<String> = texts.into_iter().collect();

    let [few, held_out] = super::write_few(dir.path(), [40, 20]).expect("files");
    let (few, held_out) = (lines(&few), lines(&held_out));
    assert_eq!((few.len(), held_out.len()), (40, 20));
    assert!(
        few.iter()
            .chain(&held_out)
            .all(|line| is_chinese(&text_of(line)))
    );
    assert!(few.iter().all(|line| !read.contains(&text_of(line))));

    let [pairs, held_out] = super::write_pairs(dir.path(), [5, 30, 20]).expect("files");
    let (pairs, held_out) = (lines(&pairs), lines(&held_out));
    let count =
        |is: &dyn Fn(&serde_json::Value) -> bool| pairs.iter().filter(|line| is(line)).count();
    assert_eq!(count(&|line| line["text"].is_string()), 150);
    assert_eq!(count(&|line| line["teacher"].is_object()), 35);
    assert_eq!(count(&|line| line["student"]["completion"] == ""), 30);
    assert!(
        held_out
            .iter()
            .all(|line| is_chinese(line["prompt"].as_str().expect("a question")))
    );
    assert_eq!(held_out.len(), 20);
}
