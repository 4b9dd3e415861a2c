//! Provides the return of freed memory to the system.

/// Gives freed memory back, where the allocator (glibc's) keeps it for later: reading a tokenizer and weights leaves tens of MiB in pieces that are
/// too small for what comes after.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "there is no safe interface")]
    // SAFETY: takes a number, and touches nothing but free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
