//! Ties the pages of all settings to the command lines: they are rendered from the declarations that `--help` is made of.

use std::{env, fmt::Write, fs, path::Path};

use clap::{Arg, Command};
use distill_program::settings::{Key, Keys};

/// The pages.
const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference");
/// The variable with which the test writes the pages anew instead of comparing them.
const REWRITE: &str = "OT_DISTILL_REWRITE";

#[test]
fn the_pages_of_settings_say_what_help_says() {
    for (program, keys) in [
        (
            student_trainer::cli::command(),
            student_trainer::cli::all_keys(),
        ),
        (
            teacher_server::cli::command(),
            teacher_server::config::Config::keys(),
        ),
    ] {
        let path = Path::new(PAGES).join(format!("{}.md", program.get_name()));
        let page = page(&program, &keys);
        if env::var_os(REWRITE).is_some() {
            fs::write(&path, page).unwrap();
            continue;
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == page,
            "{} is not what --help says; write it anew: {REWRITE}=1 cargo test --workspace --locked pages_of_settings",
            path.display()
        );
    }
}

/// Everything that a program's `--help` says about its commands.
fn page(program: &Command, keys: &[Key]) -> String {
    let name = program.get_name().to_owned();
    let about = program.get_about().map(ToString::to_string);
    let mut page = format!(
        "# {name}\n\n<!-- Rendered by tests/tests/integration/settings_pages.rs from the declarations of the settings. -->\n\n\
         {}. Every command with its flags, as `{name} COMMAND --help` prints them; [Settings](../settings.md) says how they and \
         the keys of a file go together.\n",
        about.unwrap_or_default().trim_end_matches('.')
    );
    let mut commands: Vec<&Command> = program.get_subcommands().collect();
    // The work comes before what looks at its results.
    commands.sort_by_key(|command| !has_file(command));
    for command in commands {
        page += &section(command, keys);
    }
    page
}

/// Whether a command reads its settings from a file too.
fn has_file(command: &Command) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == "config")
}

fn section(command: &Command, keys: &[Key]) -> String {
    let about = command.get_about().map(ToString::to_string);
    let about = about.unwrap_or_default();
    let mut text = format!(
        "\n## {}\n\n{}.\n",
        command.get_name(),
        in_cell(about.trim_end_matches('.'))
    );
    let has_file = has_file(command);
    let shown = command
        .get_arguments()
        .filter(|arg| arg.get_id() != "help")
        .collect::<Vec<_>>();
    let mut groups: Vec<Option<&str>> = Vec::new();
    for arg in &shown {
        if !groups.contains(&arg.get_help_heading()) {
            groups.push(arg.get_help_heading());
        }
    }
    for group in groups {
        if let Some(group) = group {
            text += &format!("\n**{group}**\n");
        }
        let heads = if has_file { "flag, key" } else { "flag" };
        text += &format!("\n| {heads} | default, may be | |\n|---|---|---|\n");
        for arg in shown.iter().filter(|arg| arg.get_help_heading() == group) {
            let is_key = keys.iter().any(|key| arg.get_id() == key.path.as_str());
            let key = (has_file && is_key).then(|| format!("`{}`", arg.get_id()));
            let said = Said::of(arg);
            let cells = [
                lines([flag(arg), key.unwrap_or_default()]),
                lines([said.default, said.may_be]),
                said.text,
            ];
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
    }
    text
}

/// An argument as it is typed.
fn flag(arg: &Arg) -> String {
    let names = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values());
    let value = names.and_then(<[_]>::first);
    let value = value.map(|name| format!("<{name}>")).unwrap_or_default();
    let typed = match arg.get_long() {
        Some(long) => format!("--{long} {value}"),
        None => value,
    };
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    let aliases = aliases.iter().map(|alias| format!(", `--{alias}`"));
    in_cell(&format!("`{}`", typed.trim_end())) + &aliases.collect::<String>()
}

/// Two lines of a cell; those that are empty are left out.
fn lines(texts: [String; 2]) -> String {
    let texts = texts.into_iter().filter(|text| !text.is_empty());
    texts.collect::<Vec<_>>().join("<br>")
}

/// What the help says of an argument, in parts.
struct Said {
    text: String,
    default: String,
    may_be: String,
}

impl Said {
    fn of(arg: &Arg) -> Self {
        let help = arg.get_long_help().or(arg.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let (line, details) = help.split_once("\n\n").unwrap_or((help.as_str(), ""));
        let (mut line, mut may_be) = (line, Vec::new());
        let defaults = arg.get_default_values().iter();
        let defaults = defaults.map(|value| value.to_string_lossy().into_owned());
        let mut default = defaults.collect::<Vec<_>>().join(",");
        // `Key::text` puts these behind its line, the default first.
        while let Some((before, note)) = line.strip_suffix(']').and_then(|l| l.rsplit_once(" [")) {
            if let Some(value) = note.strip_prefix("default: ") {
                default = value.to_owned();
            } else if let Some(words) = note.strip_prefix("possible values: ") {
                let words: Vec<String> = words.split(", ").map(code).collect();
                may_be.push(format!("one of {}", words.join(", ")));
            } else if is_limit(note) {
                may_be.push(note.to_owned());
            } else {
                break;
            }
            line = before;
        }
        may_be.reverse();
        let details = details.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = if details.is_empty() { "" } else { ". " };
        let text = format!("{}{end}{details}", line.trim_end_matches('.'));
        Self {
            text: in_cell(text.trim_end_matches('.')),
            default: match default {
                default if default.is_empty() => default,
                default if default.contains(' ') => in_cell(&default),
                default => code(&default),
            },
            may_be: may_be.join("; "),
        }
    }
}

/// Whether it is what a number, or how many there are, may be.
fn is_limit(note: &str) -> bool {
    note.starts_with("at least ")
        || note.starts_with(|c: char| c.is_ascii_digit()) && note.contains(" to ")
}

fn code(text: &str) -> String {
    in_cell(&format!("`{text}`"))
}

/// A text in a cell of a table, in which backticks keep their meaning.
fn in_cell(text: &str) -> String {
    let mut is_code = false;
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '|' => out += "\\|",
            '<' if !is_code => out += "&lt;",
            '*' if !is_code => out += "\\*",
            '`' => {
                is_code = !is_code;
                out.push(c);
            }
            '\n' => out.push(' '),
            c => out.push(c),
        }
        out
    })
}
