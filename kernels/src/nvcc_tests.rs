//! Checks the kernels' text with the compiler that cards' users have, where there is one, and reports what it makes of it.

use std::process::Command;

use crate::MODULES;

#[test]
#[ignore = "needs nvcc: $CUDA_HOME/bin/nvcc, or on the path"]
fn nvcc_takes_every_kernel_and_spills_no_register() {
    let nvcc = std::env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| {
        std::path::Path::new(&home).join("bin").join("nvcc")
    });
    let folder = tempfile::tempdir().unwrap();
    let kinds = ["sm_89", "sm_90"].into_iter();
    for (architecture, module) in kinds.flat_map(|kind| MODULES.iter().map(move |m| (kind, m))) {
        let source = folder.path().join(module.name()).with_extension("cu");
        std::fs::write(&source, module.text()).unwrap();
        let output = Command::new(&nvcc)
            .args(["-std=c++17", "-Xptxas", "-v", "-cubin", "-arch"])
            .args([architecture, "-o"])
            .args([&source.with_extension("cubin"), &source])
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {report}", module.name());
        let mut function = "";
        for line in report.lines() {
            if let Some((_, rest)) = line.split_once("entry function '") {
                function = rest.split('\'').next().unwrap_or_default();
            }
            if let Some((_, spills)) = line.split_once("stack frame, ") {
                let spills_nothing = spills == "0 bytes spill stores, 0 bytes spill loads";
                assert!(spills_nothing, "{function}, {architecture}: {spills}");
            }
            if let Some((_, used)) = line.split_once("Used ") {
                println!("{}::{function}, {architecture}: {used}", module.name());
            }
        }
    }
}
