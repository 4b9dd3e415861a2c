//! Provides the number of threads that the tensor library computes with, set once, before any of them exists.

/// candle's pool for elementwise operations: 1 is the calling thread alone.
const ELEMENTWISE: &str = "CANDLE_NUM_THREADS";
/// Threads of matrix products and of this crate's own kernels.
const PRODUCTS: &str = "RAYON_NUM_THREADS";

/// Settles how many threads compute, where the environment does not say: every core for matrix products, one for elementwise
/// operations.
///
/// candle's pool for the latter waits by spinning. Teacher and student share one machine's cores, and then the thread that spins
/// keeps off the one it waits for: a step of a small student took four times as long with it as without. Naming the
/// number also spares candle from reading `/proc/cpuinfo` in every operation.
///
/// Call it first in `main`: candle and rayon read the environment when they first compute.
pub fn configure() {
    configure_for(available());
}

/// Cores that this process may use.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// As [`configure`], where several processes share the cores and this one has so many.
pub fn configure_for(cores: usize) {
    let set = |name: &str, value: usize| {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread exists yet, so none reads the environment meanwhile.
            #[expect(unsafe_code, reason = "the environment is the only way to tell candle")]
            unsafe {
                std::env::set_var(name, value.to_string());
            }
        }
    };
    set(PRODUCTS, cores);
    set(ELEMENTWISE, 1);
}
