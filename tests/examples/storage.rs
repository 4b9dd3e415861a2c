//! Serves a folder as S3 for the scripts that are run by hand: `storage FOLDER HOST:PORT`, until it is ended.

use std::path::Path;

use anyhow::{Context, Result};
use distill_tests::storage::Storage;

fn main() -> Result<()> {
    let mut given = std::env::args().skip(1);
    let folder = given.next().context("name a folder")?;
    let address = given.next().context("name an address")?;
    let _storage = Storage::serve(Path::new(&folder), &address)?;
    loop {
        std::thread::park();
    }
}
