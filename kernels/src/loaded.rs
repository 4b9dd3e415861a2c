//! Provides the kernels that a card holds: compiled, or found on the disk, and loaded at their first use in a process.

use std::collections::{BTreeMap, btree_map::Entry};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, Result, bail};

use crate::Module;
use crate::compiler::{Nvrtc, Target};
use crate::image_cache::{ImageCache, Source};

/// A module that is loaded, and the functions of it that were asked for.
struct Held {
    module: Arc<CudaModule>,
    functions: BTreeMap<&'static str, CudaFunction>,
}

/// The function on this card. Every launch asks, so the driver is asked once.
pub(crate) fn function(
    card: &CudaDevice,
    module: &Module,
    function: &'static str,
) -> Result<CudaFunction> {
    // They live as long as the process does, and so does the card's context.
    static LOADED: Mutex<BTreeMap<(usize, &str), Held>> = Mutex::new(BTreeMap::new());
    let stream = card.cuda_stream();
    let key = (stream.context().ordinal(), module.name());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let held = match loaded.entry(key) {
        Entry::Occupied(held) => held.into_mut(),
        Entry::Vacant(place) => place.insert(Held {
            module: load(stream.context(), module)?,
            functions: BTreeMap::new(),
        }),
    };
    if let Some(known) = held.functions.get(function) {
        return Ok(known.clone());
    }
    let found = held.module.load_function(function).w();
    let found =
        found.map_err(|e| e.context(format!("{} has no kernel {function}", module.name())))?;
    held.functions.insert(function, found.clone());
    Ok(found)
}

fn load(context: &Arc<CudaContext>, module: &Module) -> Result<Arc<CudaModule>> {
    let (major, minor) = context.compute_capability().w()?;
    let nvrtc = Nvrtc::get()?;
    let target = nvrtc.target(10 * major + minor)?;
    let text = module.text();
    let source = Source {
        module: module.name(),
        text: &text,
        architecture: &target.to_string(),
        compiler: nvrtc.name(),
    };
    let image = ImageCache::of_user().image(&source, || nvrtc.compile(&text, target));
    let image = image.map_err(|e| e.context(format!("the kernels of {}", module.name())))?;
    match context.load_module(Ptx::from_binary(image)) {
        Ok(loaded) => Ok(loaded),
        Err(error) => bail!(
            "the driver, which is for CUDA {}, refuses the kernels of {} that {} has compiled for {target}: {error}. {}",
            driver_version(),
            module.name(),
            nvrtc.name(),
            match target {
                Target::Own(_) =>
                    "It has to be of the same major version at least: update the driver, or take a build with its toolkit",
                Target::Translated(_) =>
                    "That NVRTC does not know this card, and what it makes for later ones needs a driver at least as new as \
                     itself: put the NVRTC of another toolkit first in LD_LIBRARY_PATH, or update the driver",
            }
        ),
    }
}

/// The CUDA version that the driver is for, as `nvidia-smi` shows it.
fn driver_version() -> String {
    let mut version = 0;
    #[expect(unsafe_code, reason = "asks the driver")]
    // SAFETY: writes one number.
    let answer = unsafe { sys::cuDriverGetVersion(&mut version) };
    match answer.result() {
        Ok(()) => format!("{}.{}", version / 1000, version % 1000 / 10),
        Err(_) => "of unknown version".into(),
    }
}
