//! Provides compiled kernels that outlive a process, on the user's disk: NVRTC takes seconds for them.
//!
//! A file holds one module for one architecture by one compiler, after a digest of all of these and of itself. What does not match
//! is compiled anew, so a damaged file costs seconds and nothing else. Files are renamed into place when they are whole: processes
//! that compile the same thing at once do so twice, and either file is the one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use candle_core::Result;

/// Below `$XDG_CACHE_HOME`, or `~/.cache`.
const FOLDER: &str = "ot-distill/kernels";
/// Bytes of the digest that a file begins with.
const DIGEST_BYTES: usize = blake3::OUT_LEN;
/// Bytes of a file at most; a module takes some hundred thousand.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Files at most, so that texts and compilers of former times do not stay for ever.
const FILES_MAX: usize = 64;

/// What an image is made from: where any of it differs it is another image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The module's name, which the file's begins with.
    pub module: &'a str,
    /// What the compiler gets.
    pub text: &'a str,
    /// What it compiles for, as the compiler names it.
    pub architecture: &'a str,
    /// The compiler with its version and options.
    pub compiler: &'a str,
}

impl Source<'_> {
    /// The digest of this, and of the image where there is one.
    fn digest(&self, image: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [self.module, self.text, self.architecture, self.compiler] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(image).finalize()
    }

    fn file_name(&self) -> String {
        let digest = self.digest(&[]).to_hex();
        format!("{}.{}.{}", self.module, self.architecture, &digest[..16])
    }
}

/// Images by their sources.
#[derive(Debug)]
pub(crate) struct ImageCache {
    /// None where the user has no place for caches.
    folder: Option<PathBuf>,
}

impl ImageCache {
    /// The cache of the user who runs this.
    #[cfg(feature = "cuda")]
    pub fn of_user() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// As the XDG Base Directory Specification says: what is no absolute path counts as not set.
    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| {
            let path = PathBuf::from(variable(name)?);
            path.is_absolute().then_some(path)
        };
        let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        Self {
            folder: caches.map(|caches| caches.join(FOLDER)),
        }
    }

    /// The image of `source`, from the disk or from `compile`, which is then kept. A disk that takes or gives nothing is no error.
    ///
    /// # Errors
    /// As `compile`.
    pub fn image(
        &self,
        source: &Source<'_>,
        compile: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let Some(folder) = &self.folder else {
            return compile();
        };
        match read(folder, source) {
            Ok(image) => return Ok(image),
            Err(error) => tracing::debug!(
                "kernels of {} are compiled: none in {} ({error})",
                source.module,
                folder.display()
            ),
        }
        let image = compile()?;
        if let Err(error) = write(folder, source, &image) {
            tracing::debug!(
                "compiled kernels are not kept in {}: {error}",
                folder.display()
            );
        }
        Ok(image)
    }
}

fn read(folder: &Path, source: &Source<'_>) -> std::io::Result<Vec<u8>> {
    let mut digest = [0; DIGEST_BYTES];
    let mut image = Vec::new();
    let mut file = File::open(folder.join(source.file_name()))?;
    file.read_exact(&mut digest)?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut image)?;
    if source.digest(&image) != digest {
        return Err(Error::new(ErrorKind::InvalidData, "the file is damaged"));
    }
    Ok(image)
}

fn write(folder: &Path, source: &Source<'_>, image: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(source.digest(image).as_bytes())?;
    file.write_all(image)?;
    file.persist(folder.join(source.file_name()))?;
    remove_oldest(folder)
}

/// Leaves [`FILES_MAX`] files. Another process may remove them at the same time.
fn remove_oldest(folder: &Path) -> std::io::Result<()> {
    let age = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let metadata = entry.metadata().ok()?;
        let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        metadata.is_file().then_some((written, entry.path()))
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)?.filter_map(age).collect();
    files.sort();
    let surplus = files.len().saturating_sub(FILES_MAX);
    for (_, path) in files.into_iter().take(surplus) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source<'_> = Source {
        module: "select",
        text: "extern \"C\" __global__ void f() {}",
        architecture: "sm_89",
        compiler: "NVRTC 13.0",
    };

    fn cache(folder: &Path) -> ImageCache {
        ImageCache {
            folder: Some(folder.join("kernels")),
        }
    }

    /// What the cache gives where the compiler would give `made`, and whether that was asked.
    fn ask(cache: &ImageCache, source: &Source<'_>, made: &[u8]) -> (Vec<u8>, bool) {
        let mut compiled = false;
        let image = cache.image(source, || {
            compiled = true;
            Ok(made.to_vec())
        });
        (image.unwrap(), compiled)
    }

    #[test]
    fn kernels_are_compiled_once_for_all_processes() {
        let folder = tempfile::tempdir().unwrap();
        let first = cache(folder.path());
        assert_eq!(ask(&first, &SOURCE, b"cubin"), (b"cubin".to_vec(), true));
        let second = cache(folder.path());
        assert_eq!(ask(&second, &SOURCE, b"other"), (b"cubin".to_vec(), false));
        let refused = second.image(
            &Source {
                text: "x",
                ..SOURCE
            },
            || candle_core::bail!("line 1"),
        );
        assert!(refused.unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn another_text_card_or_compiler_is_another_image() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        ask(&cache, &SOURCE, b"cubin");
        for other in [
            Source {
                module: "head",
                ..SOURCE
            },
            Source {
                text: "extern",
                ..SOURCE
            },
            Source {
                architecture: "sm_90",
                ..SOURCE
            },
            Source {
                compiler: "NVRTC 13.2",
                ..SOURCE
            },
            // The same letters, divided in another way.
            Source {
                architecture: "sm_89N",
                compiler: "VRTC 13.0",
                ..SOURCE
            },
        ] {
            assert_eq!(ask(&cache, &other, b"own"), (b"own".to_vec(), true));
        }
        assert_eq!(ask(&cache, &SOURCE, b""), (b"cubin".to_vec(), false));
    }

    #[test]
    fn a_damaged_or_foreign_file_is_compiled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        ask(&cache, &SOURCE, b"cubin");
        let path = folder.path().join("kernels").join(SOURCE.file_name());
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let foreign = Source {
            text: "extern",
            ..SOURCE
        };
        let foreign = [foreign.digest(b"cubin").as_bytes().as_slice(), b"cubin"].concat();
        let longer = [good.as_slice(), b"\0"].concat();
        let cut = &good[..good.len() - 1];
        let bad: [&[u8]; 6] = [b"", &good[..7], cut, &longer, &flipped, &foreign];
        for bad in bad {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(ask(&cache, &SOURCE, b"cubin"), (b"cubin".to_vec(), true));
            assert_eq!(ask(&cache, &SOURCE, b"other"), (b"cubin".to_vec(), false));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(ask(&cache, &SOURCE, b"new"), (b"new".to_vec(), true));
    }

    #[test]
    fn a_place_that_takes_nothing_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernels"), "a file").unwrap();
        for cache in [cache(folder.path()), ImageCache { folder: None }] {
            for made in [b"one", b"two"] {
                assert_eq!(ask(&cache, &SOURCE, made), (made.to_vec(), true));
            }
        }
    }

    #[test]
    fn processes_that_compile_at_once_both_have_their_kernels() {
        let folder = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let image = cache(folder.path()).image(&SOURCE, || {
                        barrier.wait();
                        Ok(vec![7; 100_000])
                    });
                    assert_eq!(image.unwrap(), [7; 100_000]);
                });
            }
        });
        let cache = cache(folder.path());
        assert_eq!(ask(&cache, &SOURCE, b""), (vec![7; 100_000], false));
        let files = std::fs::read_dir(folder.path().join("kernels")).unwrap();
        assert_eq!(files.count(), 1);
    }

    #[test]
    fn files_of_former_times_go() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let texts: Vec<String> = (0..FILES_MAX + 3).map(|i| format!("text {i}")).collect();
        for text in &texts {
            let (_, compiled) = ask(&cache, &Source { text, ..SOURCE }, b"cubin");
            assert!(compiled);
        }
        let files = std::fs::read_dir(folder.path().join("kernels")).unwrap();
        assert_eq!(files.count(), FILES_MAX);
    }

    #[test]
    fn the_folder_is_where_caches_are() {
        let folder = |variables: &[(&str, &str)]| {
            let get = |name: &str| variables.iter().find(|(other, _)| *other == name);
            ImageCache::from_variables(|name| get(name).map(|(_, value)| value.into())).folder
        };
        let own = |path: &str| Some(PathBuf::from(path).join("ot-distill/kernels"));
        let both = [("XDG_CACHE_HOME", "/c"), ("HOME", "/u")];
        assert_eq!(folder(&both), own("/c"));
        assert_eq!(folder(&both[1..]), own("/u/.cache"));
        for unset in ["", "relative"] {
            let variables = [("XDG_CACHE_HOME", unset), ("HOME", "/u")];
            assert_eq!(folder(&variables), own("/u/.cache"));
            assert_eq!(folder(&[("HOME", unset)]), None);
        }
        assert_eq!(folder(&[]), None);
    }
}
