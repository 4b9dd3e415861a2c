//! Provides files that are either the old or the new version after a crash, never a mix.

use std::path::Path;

use distill_program::output;

use crate::Result;

/// Writes a file as [`output::write`] does.
///
/// # Errors
/// The path and what the system said; the old file is untouched then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(output::write(path, bytes)?)
}
