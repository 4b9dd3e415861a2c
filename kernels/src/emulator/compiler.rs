//! Provides modules as libraries: the engine compiled once in a process, each module compiled for it.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use candle_core::{Error, Result, bail};
use libloading::Library;
use tempfile::TempDir;

use crate::Module;

/// How a kernel is compiled: the strings of this list.
const FLAGS: &str = include_str!("flags.hpp");

macro_rules! files {
    ($($name:literal)+) => { &[$(($name, include_str!($name))),+] };
}
const FILES: &[(&str, &str)] = files! {
    "module.hpp" "launch.hpp" "fibers.hpp" "shared.hpp" "exchanges.hpp" "tensor.hpp" "engine.hpp" "hooks.hpp"
    "emulate.cpp" "vectors.hpp" "device.hpp" "registry.hpp" "emulated.hpp"
};

/// A folder with the engine's object and the headers of a module.
struct Engine {
    folder: TempDir,
}

impl Engine {
    fn compile() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, text) in FILES {
            std::fs::write(folder.path().join(name), text)?;
        }
        let engine = Self { folder };
        let flags = [
            "-std=c++17",
            "-O2",
            "-fPIC",
            "-w",
            "-U_FORTIFY_SOURCE",
            "-fvisibility=hidden",
            "-c",
        ];
        run(
            compiler()
                .args(flags)
                .arg(engine.path("emulate.cpp"))
                .arg("-o")
                .arg(engine.object()),
            "the emulator's engine",
        )?;
        Ok(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn object(&self) -> PathBuf {
        self.path("emulate.o")
    }
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
}

/// Runs the compiler on `what`.
fn run(command: &mut Command, what: &str) -> Result<()> {
    let program = command.get_program().to_os_string();
    let program = program.display();
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("no C++ compiler {program} for {what}; install one, or name it in CXX")
        }
        output => output?,
    };
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "{program} does not compile {what}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The module as a library with the engine in it.
pub(super) fn load(module: &Module) -> Result<Library> {
    static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);
    let mut engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = match &mut *engine {
        Some(engine) => engine,
        none => none.insert(Engine::compile()?),
    };
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("kernels.cpp"), text(module))?;
    let what = format!("the kernels of {}", module.name());
    let mut compile = compiler();
    compile
        .args(flags())
        .arg("-I")
        .arg(engine.folder.path())
        .arg("-c");
    run(
        compile
            .arg(path("kernels.cpp"))
            .arg("-o")
            .arg(path("kernels.o")),
        &what,
    )?;
    // The sanitizer's own runtime is not linked: the engine is what is called.
    let mut link = compiler();
    link.arg("-shared")
        .args([&path("kernels.o"), &engine.object()])
        .arg("-o")
        .arg(path("lib"));
    run(&mut link, &what)?;
    open(&path("lib"))
}

fn open(path: &Path) -> Result<Library> {
    #[expect(unsafe_code, reason = "loads what was compiled above")]
    // SAFETY: the library runs nothing when it is loaded but constructors of empty vectors.
    unsafe {
        Library::new(path).map_err(Error::wrap)
    }
}

fn flags() -> impl Iterator<Item = &'static str> {
    FLAGS
        .lines()
        .filter_map(|line| line.strip_prefix('"')?.strip_suffix("\","))
}

/// What the C++ compiler gets: the module, and the table of its functions.
fn text(module: &Module) -> String {
    let mut text = [
        "#include \"emulated.hpp\"\n",
        &module.text(),
        "\nCARD_TABLE(",
    ]
    .concat();
    for function in module.functions() {
        let _ = write!(text, "CARD_ENTRY({function}), ");
    }
    text + "CardEntry{})\n"
}
