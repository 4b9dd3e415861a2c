//! Checks the kernels' text with NVIDIA's own compiler for every card that people have; no card is needed for that.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr::{null, null_mut},
};

use libloading::{Library, Symbol};

use crate::{MODULES, Module};

/// A100; RTX 30; RTX 40, the reference; H100; RTX 50.
const ARCHITECTURES: [u32; 5] = [80, 86, 89, 90, 120];

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// NVRTC's library, and the one that it looks for beside it.
struct Nvrtc {
    library: Library,
    _builtins: Vec<Library>,
}

impl Nvrtc {
    fn load(path: &Path) -> Self {
        let folder = path.parent().expect("a file in a folder");
        let entries = std::fs::read_dir(folder).expect("NVRTC's folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let is_builtins = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libnvrtc-builtins.so")
        };
        #[expect(unsafe_code, reason = "loads NVIDIA's libraries")]
        // SAFETY: they run nothing of ours when they are loaded.
        let load = |path: &Path| unsafe { Library::new(path) }.expect("a library");
        Self {
            _builtins: paths.filter(is_builtins).map(|path| load(&path)).collect(),
            library: load(path),
        }
    }

    fn function<T>(&self, name: &str) -> Symbol<'_, T> {
        #[expect(unsafe_code, reason = "names a function of NVRTC")]
        // SAFETY: the types above are those of nvrtc.h.
        unsafe { self.library.get(name) }.expect("a function of NVRTC")
    }

    /// What the assembler says of the module's functions.
    fn report(&self, module: &Module, architecture: u32) -> String {
        let text = CString::new(module.text()).expect("text without NUL");
        let options = [
            format!("--gpu-architecture=sm_{architecture}"),
            "--std=c++17".into(),
            "--ptxas-options=-v".into(),
        ];
        let options = options.map(|option| CString::new(option).expect("text without NUL"));
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = null_mut();
        #[expect(unsafe_code, reason = "calls NVRTC")]
        // SAFETY: every pointer is of something that lives until the end of this block; the log has the size that NVRTC says.
        unsafe {
            let create = self.function::<Create>("nvrtcCreateProgram");
            let compile = self.function::<Compile>("nvrtcCompileProgram");
            let size = self.function::<Size>("nvrtcGetProgramLogSize");
            let log = self.function::<Text>("nvrtcGetProgramLog");
            let destroy = self.function::<Destroy>("nvrtcDestroyProgram");
            let made = create(&mut program, text.as_ptr(), null(), 0, null(), null());
            assert_eq!(made, 0, "nvrtcCreateProgram");
            let compiled = compile(program, pointers.len() as c_int, pointers.as_ptr());
            let mut length = 0;
            assert_eq!(size(program, &mut length), 0, "nvrtcGetProgramLogSize");
            let mut bytes = vec![0u8; length.max(1)];
            assert_eq!(
                log(program, bytes.as_mut_ptr().cast()),
                0,
                "nvrtcGetProgramLog"
            );
            let report = CStr::from_bytes_until_nul(&bytes)
                .expect("a text")
                .to_string_lossy();
            assert_eq!(
                compiled,
                0,
                "{} for sm_{architecture}: {report}",
                module.name()
            );
            destroy(&mut program);
            report.into_owned()
        }
    }
}

/// Name and registers of every function in a report, and what it says of stack frames and spilled registers.
fn registers(report: &str) -> (Vec<(String, u32)>, Vec<String>) {
    let mut function = "";
    let (mut found, mut spills) = (Vec::new(), Vec::new());
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("entry function '") {
            function = rest.split('\'').next().unwrap_or_default();
        }
        if let Some((frame, spilled)) = line.split_once(" bytes stack frame, ") {
            let nothing =
                frame.ends_with(" 0") && spilled == "0 bytes spill stores, 0 bytes spill loads";
            if !nothing {
                spills.push(format!("{function}: {}", line.trim()));
            }
        }
        if let Some((_, used)) = line.split_once("Used ") {
            let count = used.split(' ').next().and_then(|count| count.parse().ok());
            found.push((function.to_owned(), count.expect("a number of registers")));
        }
    }
    (found, spills)
}

#[test]
#[ignore = "needs NVIDIA's compiler: NVRTC_LIBRARY names libnvrtc.so, of the package nvidia-cuda-nvrtc for Python or of a toolkit"]
fn nvrtc_takes_every_kernel_for_every_card_and_spills_no_register() {
    let path = std::env::var_os("NVRTC_LIBRARY").expect("NVRTC_LIBRARY names libnvrtc.so");
    let nvrtc = Nvrtc::load(Path::new(&path));
    let heads: String = ARCHITECTURES.map(|sm| format!(" sm_{sm} |")).concat();
    println!(
        "| module | kernel |{heads}\n|---|---|{}",
        "---:|".repeat(ARCHITECTURES.len())
    );
    let mut spilled = Vec::new();
    for module in MODULES {
        let columns = ARCHITECTURES.map(|sm| {
            let (found, spills) = registers(&nvrtc.report(module, sm));
            spilled.extend(spills.iter().map(|line| format!("sm_{sm}, {line}")));
            found
        });
        for function in module.functions() {
            let cells = columns.each_ref().map(|column| {
                let found = column.iter().find(|(name, _)| name == function);
                let (_, count) = found.expect("the compiler names every kernel");
                format!(" {count} |")
            });
            println!("| {} | {function} |{}", module.name(), cells.concat());
        }
    }
    assert!(
        spilled.is_empty(),
        "registers do not suffice:\n{}",
        spilled.join("\n")
    );
}
