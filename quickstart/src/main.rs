//! Provides the program `quickstart`.

fn main() -> anyhow::Result<()> {
    Ok(quickstart::cli::run()?)
}
