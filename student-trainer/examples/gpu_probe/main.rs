/*! Compares a GPU with the CPU and measures it, one part at a time; each prints one JSON object as its last line.

```text
cargo run --release -p student-trainer --features cuda --example gpu_probe -- ceiling|kernels|parts|transport|gradients [--device cuda] [--tiny]
```

`ceiling`: what matrix products reach. `kernels`: every kernel compiles for this card. `parts`: microseconds of
each part of a step, in the reference pair's shapes. `transport`: plans and their values against
the host's solver, and the time of both. `gradients`: loss and adapter gradients of a whole random student in bf16 on the
device, against the CPU's in f32. A part that fails ends with an error. On `--device cpu` the same code compares the CPU with
itself, and runs the kernel in its emulator.
*/
#![allow(clippy::print_stdout)]

mod ceiling;
mod gradients;
mod parts;
mod transport;

use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use clap::{Parser, ValueEnum};
use distill_kernels::{MODULES, device::compile_all};
use distill_model::{DeviceChoice, backend};
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// What to do.
    part: Part,
    /// Where.
    #[arg(long, default_value = "cuda")]
    device: DeviceChoice,
    /// Small shapes, for a rehearsal.
    #[arg(long)]
    tiny: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Ceiling,
    Kernels,
    Parts,
    Transport,
    Gradients,
}

fn main() -> Result<()> {
    distill_model::threads::configure();
    let args = Args::parse();
    let device = args.device.open()?;
    let found = match args.part {
        Part::Ceiling => ceiling::measure(&device, args.tiny)?,
        Part::Kernels => kernels(&device)?,
        Part::Parts => parts::measure(&device, args.tiny)?,
        Part::Transport => transport::compare(&device, args.tiny)?,
        Part::Gradients => gradients::compare(&device, args.tiny)?,
    };
    println!("{found}");
    Ok(())
}

/// Compiles every kernel for the card; on the CPU there is nothing to compile, and only their number is told.
fn kernels(device: &Device) -> Result<Value> {
    let start = Instant::now();
    if let Device::Cuda(card) = device {
        compile_all(card)?;
    }
    let functions: usize = MODULES.iter().map(|module| module.functions().len()).sum();
    Ok(json!({
        "backend": backend(device)?, "modules": MODULES.len(), "functions": functions,
        "compile_seconds": start.elapsed().as_secs_f64(),
    }))
}
