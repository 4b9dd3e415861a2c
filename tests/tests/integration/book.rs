//! Builds the book in `docs/` and follows every link in it and in both READMEs; what they show to type is read by the programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Command;
use mdbook_driver::{MDBook, config::Config};

const READMES: [&str; 2] = ["README.md", "README.zh-CN.md"];
/// What of the built book is no page of its own.
const NO_PAGES: [&str; 3] = ["404.html", "print.html", "toc.html"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files below `directory`, by their path from it.
fn files(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.strip_prefix(directory)?.to_owned());
            }
        }
    }
    Ok(found)
}

/// Pages of the book as they are written, by their path from the root.
fn sources() -> Result<Vec<PathBuf>> {
    let files = files(&root().join("docs"))?.into_iter();
    let pages = files.filter(|path| path.extension().is_some_and(|end| end == "md"));
    Ok(pages.map(|path| Path::new("docs").join(path)).collect())
}

/// Values of an attribute in a text of HTML.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let begin = format!(" {name}=\"");
    let begin_len = begin.len();
    let places: Vec<usize> = html.match_indices(&begin).map(|(at, _)| at).collect();
    places
        .into_iter()
        .filter_map(move |at| html.get(at + begin_len..)?.split('"').next())
}

/// The path that a link from a file leads to, and the place in it. `None` where it leads to the web.
fn target<'a>(from: &Path, link: &'a str) -> Option<(PathBuf, &'a str)> {
    if link.contains("://") {
        return None;
    }
    let (path, place) = link.split_once('#').unwrap_or((link, ""));
    if path.is_empty() {
        return Some((from.to_owned(), place));
    }
    let mut to = from.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => {
                to.pop();
            }
            Component::Normal(name) => to.push(name),
            _ => {}
        }
    }
    Some((to, place))
}

/// The book as it is built: its files, and the places in its pages that can be linked to.
struct Built {
    files: BTreeSet<PathBuf>,
    pages: BTreeMap<PathBuf, String>,
}

impl Built {
    fn new() -> Result<Self> {
        let out = tempfile::tempdir()?;
        let docs = root().join("docs");
        let mut config = Config::from_disk(docs.join("book.toml"))?;
        config.build.build_dir = out.path().to_owned();
        MDBook::load_with_config(docs, config)?.build()?;
        let files = files(out.path())?;
        let mut pages = BTreeMap::new();
        for path in &files {
            let is_page = path.extension().is_some_and(|end| end == "html");
            if is_page && !NO_PAGES.iter().any(|name| path == Path::new(name)) {
                pages.insert(path.clone(), fs::read_to_string(out.path().join(path))?);
            }
        }
        Ok(Self { files, pages })
    }

    /// What is wrong with where a link of this page leads; `None` where nothing is.
    fn fault(&self, (to, place): &(PathBuf, &str)) -> Option<String> {
        if !self.files.contains(to) {
            return Some(format!("there is no {}", to.display()));
        }
        let is_there = |html: &String| attributes(html, "id").any(|id| id == *place);
        let has_place = place.is_empty() || self.pages.get(to).is_some_and(is_there);
        (!has_place).then(|| format!("there is no #{place} in {}", to.display()))
    }
}

/// Links of a text of Markdown.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    let after = markdown.split("](").skip(1);
    after.filter_map(|rest| rest.split([')', ' ']).next())
}

#[test]
fn no_link_of_the_book_or_the_readmes_leads_nowhere() -> Result<()> {
    let book = Built::new()?;
    let (mut faults, mut followed) = (Vec::new(), 0);
    for (path, html) in &book.pages {
        for link in attributes(html, "href").chain(attributes(html, "src")) {
            let Some(to) = target(path, link) else {
                continue;
            };
            followed += 1;
            let fault = book.fault(&to);
            faults.extend(fault.map(|fault| format!("{}: {link}: {fault}", path.display())));
        }
    }
    for readme in READMES {
        let text = fs::read_to_string(root().join(readme))?;
        for link in links(&text) {
            let Some((to, place)) = target(Path::new(readme), link) else {
                continue;
            };
            followed += 1;
            let fault = match to.strip_prefix("docs") {
                Ok(page) if page.extension().is_some_and(|end| end == "md") => {
                    book.fault(&(page.with_extension("html"), place))
                }
                _ if place.is_empty() && root().join(&to).exists() => None,
                _ => Some(format!("there is no {}", to.display())),
            };
            faults.extend(fault.map(|fault| format!("{readme}: {link}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(followed > 500, "only {followed} links were found");
    // Every page is in the book's table of contents.
    for source in sources()? {
        let page = source.strip_prefix("docs")?.with_extension("html");
        let is_page = book.pages.contains_key(&page);
        assert!(is_page || source.ends_with("SUMMARY.md"), "{page:?}");
    }
    Ok(())
}

/// Texts between backticks, outside of blocks of code.
fn code_spans(markdown: &str) -> Vec<&str> {
    let texts = markdown.split("```").step_by(2);
    texts
        .flat_map(|text| text.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn files_of_the_repository_that_pages_name_are_there() -> Result<()> {
    let mut looked_at = 0;
    let readmes = READMES.map(PathBuf::from);
    for page in sources()?.into_iter().chain(readmes) {
        let text = fs::read_to_string(root().join(&page))?;
        for span in code_spans(&text) {
            let path = span.split_whitespace().next().unwrap_or_default();
            let Some((top, _)) = path.split_once('/') else {
                continue;
            };
            if top.is_empty() || top == "target" || !root().join(top).is_dir() {
                continue;
            }
            looked_at += 1;
            assert!(root().join(path).exists(), "{}: {path}", page.display());
        }
    }
    assert!(looked_at > 40, "only {looked_at} files are named");
    Ok(())
}

/// The lines of a text's blocks of shell, each with what it goes on with in the next.
fn shell_lines(markdown: &str) -> Vec<String> {
    let blocks = markdown.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let lines = blocks.map(|block| block.replace("\\\n", " "));
    lines
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// What `mpirun` or `srun` is told to start, of one of their commands.
fn without_launcher(mut words: Vec<String>) -> Vec<String> {
    let is_launcher = |word: &String| word == "mpirun" || word == "srun";
    if words.first().is_some_and(is_launcher) {
        let program = words.iter().position(|word| word == "student-trainer");
        words.drain(..program.unwrap_or(0));
    }
    words
}

#[test]
fn what_is_shown_to_type_is_read_by_the_programs() -> Result<()> {
    let programs: [fn() -> Command; 2] =
        [student_trainer::cli::command, teacher_server::cli::command];
    let mut read = 0;
    let readmes = READMES.map(PathBuf::from);
    for page in sources()?.into_iter().chain(readmes) {
        let text = fs::read_to_string(root().join(&page))?;
        for line in shell_lines(&text) {
            let words = shlex::split(&line).with_context(|| line.clone())?;
            let words = without_launcher(words);
            let Some(name) = words.first().map(Path::new).and_then(Path::file_name) else {
                continue;
            };
            for program in programs.map(|program| program()) {
                if name == program.get_name() {
                    let refused = program.try_get_matches_from(&words).err();
                    assert!(refused.is_none(), "{}: {line}: {refused:?}", page.display());
                    read += 1;
                }
            }
        }
    }
    assert!(read > 25, "only {read} commands are shown");
    Ok(())
}

/// Every number of a text, in order of size.
fn numbers(text: &str) -> Vec<&str> {
    let parts = text.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ',');
    let parts = parts.map(|part| part.trim_matches(['.', ',']));
    let mut numbers: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn both_readmes_say_the_same_on_a_screen_and_a_half() -> Result<()> {
    let [english, chinese] = READMES.map(|readme| fs::read_to_string(root().join(readme)));
    let (english, chinese) = (english?, chinese?);
    assert_eq!(numbers(&english), numbers(&chinese));
    let typed = |text: &str| {
        let mut lines = shell_lines(text);
        lines.retain(|line| !line.starts_with('#'));
        lines
    };
    assert_eq!(typed(&english), typed(&chinese));
    let of_others = |text| -> Vec<String> {
        let links = links(text).filter(|link| !link.starts_with("README"));
        links.map(str::to_owned).collect()
    };
    assert_eq!(of_others(&english), of_others(&chinese));
    for text in [english, chinese] {
        assert!(text.lines().count() <= 100);
        assert!(text.lines().all(|line| line.chars().count() <= 130));
    }
    Ok(())
}
