//! Tells both real programs to write over what is no regular file: links are followed, devices and FIFOs written into.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{every_command::Place, harness::send_signal, pipeline::path_text, terminal::Terminal};

/// Every flag that names a file to write, and the command that is told so.
const OUTPUTS: [(&str, &str); 6] = [
    ("serve", "port-file"),
    ("train", "first-step-grad-out"),
    ("eval", "answers-out"),
    ("eval", "plans-out"),
    ("losses", "grad-out"),
    ("report", "out"),
];
/// Flags with such a name that are read, and those that name a directory to make.
const OTHERS: [(&str, &str); 18] = [
    ("serve", "token-file"),
    ("precompute", "token-file"),
    // Precompute takes the settings of serve, and listens nowhere.
    ("precompute", "port-file"),
    ("serve", "spool-dir"),
    ("precompute", "spool-dir"),
    ("merge", "out"),
    ("train", "out"),
    ("train", "token-file"),
    ("eval", "token-file"),
    ("generate", "token-file"),
    ("chat", "token-file"),
    ("pretrain", "out"),
    ("quantize", "out"),
    ("export", "out"),
    ("ablate", "out"),
    // Plan takes the settings of train, and writes nothing.
    ("plan", "token-file"),
    ("plan", "out"),
    ("plan", "first-step-grad-out"),
];

/// The command that writes to `path`, for `(command, flag)`.
fn command(place: &Place, (name, flag): (&str, &str), path: &Path) -> Command {
    let flag = format!("--{flag}");
    let flags = [&*flag, path_text(path)];
    match name {
        "serve" => place.serve(&flags),
        "train" => place.train(&[&["--steps", "1"], flags.as_slice()].concat()),
        "eval" => place.eval(&flags),
        "losses" => place.losses(&flags),
        _ => place.report(&flags),
    }
}

/// Runs it to its end; a server is stopped once `is_written`.
fn run(mut command: Command, is_server: bool, is_written: impl Fn() -> bool) -> Result<()> {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if is_server {
        while !is_written() {
            assert!(child.try_wait()?.is_none(), "the server ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        send_signal(&child, libc::SIGTERM);
    }
    assert!(child.wait()?.success(), "{command:?}");
    Ok(())
}

#[test]
fn an_output_flag_replaced_a_link_a_fifo_or_a_device() -> Result<()> {
    let place = Place::new()?;
    for (name, flag) in OUTPUTS {
        let what = format!("{name} --{flag}");
        let is_server = name == "serve";
        let directory = PathBuf::from(place.fresh());
        fs::create_dir(&directory)?;

        // A link to where nothing is yet.
        let (link, target) = (directory.join("link"), directory.join("target"));
        symlink("target", &link)?;
        let is_there = || fs::read(&target).is_ok_and(|bytes| !bytes.is_empty());
        run(command(&place, (name, flag), &link), is_server, is_there)?;
        assert_eq!(fs::read_link(&link)?, Path::new("target"), "{what}");
        let length = fs::read(&target)?.len();

        let fifo = directory.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status()?.success());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo)
        });
        run(command(&place, (name, flag), &fifo), is_server, || {
            reader.is_finished()
        })?;
        let read = reader.join().ok().context("the reader")??;
        // Times and addresses have other digits.
        assert!(
            read.len().abs_diff(length) < 64,
            "{what}: {} of {length}",
            read.len()
        );
        assert!(fs::metadata(&fifo)?.file_type().is_fifo(), "{what}");

        let terminal = Terminal::open()?;
        let device = terminal.path.clone();
        run(command(&place, (name, flag), &device), is_server, || {
            terminal.is_written()
        })?;
        assert!(
            fs::metadata(&device)?.file_type().is_char_device(),
            "{what}"
        );
        let screen = terminal.close();
        assert!(!screen.is_empty(), "{what}");
    }
    Ok(())
}

#[test]
fn every_flag_that_looks_like_an_output_is_tested_or_is_none() {
    let names = ["out", "file", "dir", "path", "log"];
    for program in [
        student_trainer::cli::command(),
        teacher_server::cli::command(),
    ] {
        for command in program.get_subcommands() {
            let flags = command.get_arguments().filter_map(|flag| flag.get_long());
            for flag in flags {
                let last = flag.rsplit('-').next().unwrap_or(flag);
                let known = (command.get_name(), flag);
                let is_known = [OUTPUTS.as_slice(), &OTHERS].concat().contains(&known);
                assert!(!names.contains(&last) || is_known, "{known:?}");
            }
        }
    }
}

#[test]
fn a_directory_that_is_to_be_made_replaced_a_link() -> Result<()> {
    let place = Place::new()?;
    let directory = PathBuf::from(place.fresh());
    fs::create_dir(&directory)?;
    let model = path_text(place.setup.teacher.path());
    for (name, from) in [("quantize", "--from"), ("export", "--base")] {
        for target in [format!("{name}-new"), format!("{name}-empty")] {
            if target.ends_with("empty") {
                fs::create_dir(directory.join(&target))?;
            }
            let link = directory.join(format!("{target}-link"));
            symlink(&target, &link)?;
            let args = [name, from, model, "--out", path_text(&link)];
            run(crate::harness::trainer(&args), false, || true)?;
            assert_eq!(fs::read_link(&link)?, Path::new(&target));
            assert!(directory.join(&target).join("config.json").is_file());
        }
    }
    Ok(())
}
