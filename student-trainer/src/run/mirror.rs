//! Provides runs in object storage: a run works in a directory of this machine, and what it cannot do without is kept at an address.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Component, Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, SystemTime},
};

use distill_objects::{Store, folder_of, is_remote};

use super::directory::CONFIG_FILE;
use crate::{Error, Result, files, shutdown::Shutdown};

/// Between two looks for a new checkpoint.
const INTERVAL: Duration = Duration::from_secs(2);
const CHECKPOINTS: &str = "checkpoints/";
/// Written last into a checkpoint: with it, the others are there.
const LAST: &str = "/state.toml";
/// Of the files that only grow, as long as a run goes on from where it was.
const LOG_ENDING: &str = ".jsonl";

/// A file as it was sent: its bytes and when it was written.
type Sent = (u64, Option<SystemTime>);

/// A directory and the objects that it is kept in.
struct Mirror {
    local: PathBuf,
    store: Store,
    sent: HashMap<String, Sent>,
}

/// Does `work` on the run in `out`. Where that is an address of object storage, the work is on a directory of this machine: what is
/// kept there is fetched before, and every checkpoint, with the logs as they are then, is sent as soon as it is written; the rest
/// at the end, however the work ends. One process at a time may train into an address.
///
/// # Errors
/// As `work`; an address without meaning, storage that refuses or cannot be reached at the beginning or the end.
pub fn kept<T>(
    out: &Path,
    shutdown: &Shutdown,
    work: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    if !is_remote(out) {
        return work(out);
    }
    let mut mirror = Mirror::open(out)?;
    mirror.fetch(&|| shutdown.is_requested())?;
    let (local, before) = (mirror.local.clone(), mirror.found()?);
    tracing::info!("working in {}, kept at {}", local.display(), out.display());
    let (end, ended) = mpsc::channel::<()>();
    let done = thread::scope(|scope| {
        let sending = scope.spawn(|| mirror.send_until(ended));
        let done = work(&local).map_err(|error| renamed(error, &local, out));
        drop(end);
        // Whatever was wrong there is found again by what is sent now.
        let _ = sending.join();
        done
    });
    if done
        .as_ref()
        .is_err_and(|error| error.to_string().contains(local.to_string_lossy().as_ref()))
    {
        tracing::warn!(
            "{} is where this machine keeps {}: a file that has to be removed has to be removed here and at the address",
            local.display(),
            out.display()
        );
    }
    // What refused to begin has changed nothing, and what was here need not be what is kept there.
    let sent = match (&done, mirror.found()? == before) {
        (Err(_), true) => Ok(()),
        _ => mirror.send(true),
    };
    let done = done?;
    if sent.is_err() {
        tracing::warn!(
            "the run is whole in {}; `--resume {}` on this machine sends it",
            local.display(),
            out.display()
        );
    }
    sent.map(|()| done)
}

/// What is wrong with the directory as a whole is wrong with the run at the address.
fn renamed(error: Error, local: &Path, address: &Path) -> Error {
    match error {
        Error::File { path, reason } if path == local => {
            let (here, there) = (local.display().to_string(), address.display().to_string());
            Error::file(address, reason.replace(&here, &there))
        }
        other => other,
    }
}

impl Mirror {
    fn open(address: &Path) -> Result<Self> {
        Ok(Self {
            local: folder_of(address).join("run"),
            store: Store::open(address)?,
            sent: HashMap::new(),
        })
    }

    /// Fetches the checkpoints that are whole there and missing or cut here, and with newer ones everything else. The last files of
    /// checkpoints come last: without one, all is fetched again.
    fn fetch(&mut self, stopped: &dyn Fn() -> bool) -> Result<()> {
        let mut there = self.store.list_all()?;
        there.retain(|name, _| is_plain(name));
        if let Some(other) = there.keys().next()
            && !there.contains_key(CONFIG_FILE)
        {
            let reason = format!("there is no run, but {other}; name another address");
            return Err(Error::file(&self.store.path(""), reason));
        }
        let here = self.found()?;
        let newest = |names: &mut dyn Iterator<Item = &String>| {
            let whole = names.filter(|name| name.starts_with(CHECKPOINTS) && name.ends_with(LAST));
            whole.max().cloned()
        };
        let (newest_there, newest_here) = (newest(&mut there.keys()), newest(&mut here.keys()));
        let is_newer = newest_there > newest_here;
        let is_whole = |name: &String| match checkpoint_of(name) {
            Some(checkpoint) => there.contains_key(&format!("{checkpoint}{LAST}")),
            None => true,
        };
        let mut names: Vec<(&String, &u64)> = there.iter().collect();
        names.sort_by_key(|(name, _)| (checkpoint_of(name).is_some(), name.ends_with(LAST)));
        for (name, bytes) in names.into_iter().filter(|(name, _)| is_whole(name)) {
            let is_longer = here.get(name).is_none_or(|(here, _)| bytes > here);
            let is_needed = match checkpoint_of(name) {
                Some(_) => is_longer,
                None if newest_there == newest_here && name.ends_with(LOG_ENDING) => is_longer,
                None => is_newer || !here.contains_key(name),
            };
            if is_needed {
                self.store.download(name, &self.local.join(name), stopped)?;
            }
        }
        // What was here before may be another's: it is sent again, unless it is a checkpoint's, which never change.
        let sent = self.found()?.into_iter().filter(|(name, (bytes, _))| {
            there.get(name) == Some(bytes) && (is_newer || checkpoint_of(name).is_some())
        });
        self.sent = sent.collect();
        Ok(())
    }

    /// Sends new checkpoints every few seconds until nobody holds the other end.
    fn send_until(&mut self, ended: mpsc::Receiver<()>) {
        let mut is_told = false;
        while matches!(ended.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout)) {
            match self.send(false) {
                Err(error) if !is_told => {
                    is_told = true;
                    tracing::warn!("{error}; it is tried again");
                }
                Err(_) => {}
                Ok(()) => is_told = false,
            }
        }
    }

    /// Sends what is not there as it is here, where there is a new checkpoint or it is the end: of a checkpoint first what its last
    /// file vouches for, then the logs, which are at least as long as it says, then that file; last go the old ones.
    fn send(&mut self, is_end: bool) -> Result<()> {
        let found = self.found()?;
        let new = found
            .keys()
            .any(|name| name.starts_with(CHECKPOINTS) && !self.sent.contains_key(name));
        if !new && !is_end {
            return Ok(());
        }
        let order = |name: &String| match (name.starts_with(CHECKPOINTS), name.ends_with(LAST)) {
            (true, false) => 0,
            (false, _) => 1,
            (true, true) => 2,
        };
        let mut names: Vec<&String> = found.keys().collect();
        names.sort_by_key(|name| order(name));
        for name in names {
            let now = found.get(name);
            if self.sent.get(name) == now {
                continue;
            }
            let path = self.local.join(name);
            match self.store.upload(&path, name, &|| false) {
                // Removed since it was found: an old checkpoint.
                Err(error) if error.is_missing() && !path.exists() => continue,
                sent => sent?,
            }
            self.sent.extend(now.map(|now| (name.clone(), *now)));
        }
        let gone = |name: &&String| name.starts_with(CHECKPOINTS) && !found.contains_key(*name);
        let mut gone: Vec<String> = self.sent.keys().filter(gone).cloned().collect();
        gone.sort_by_key(|name| !name.ends_with(LAST));
        for name in gone {
            self.store.remove(&name)?;
            self.sent.remove(&name);
        }
        Ok(())
    }

    /// The run's files; what is being written, the lock and links are none.
    fn found(&self) -> Result<BTreeMap<String, Sent>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let paths = files::if_there(files::list(&self.local.join(&folder)))?;
            for path in paths.unwrap_or_default() {
                let Some(name) = path.file_name().filter(|name| !is_hidden(name)) else {
                    continue;
                };
                // Whatever is gone by now was an old checkpoint's.
                let Ok(about) = path.symlink_metadata() else {
                    continue;
                };
                let name = folder.join(name);
                if about.is_dir() {
                    folders.push(name);
                } else if let (true, Some(name)) = (about.is_file(), name.to_str()) {
                    found.insert(name.to_owned(), (about.len(), about.modified().ok()));
                }
            }
        }
        Ok(found)
    }
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_none_or(|name| name.starts_with('.'))
}

/// Whether an object's name stays below the directory that it is joined to.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    parts.all(|part| matches!(part, Component::Normal(part) if !is_hidden(part)))
}

/// `checkpoints/step-N` of a file in it.
fn checkpoint_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(CHECKPOINTS)?;
    let (step, _) = rest.split_once('/')?;
    name.get(..CHECKPOINTS.len() + step.len())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A run's directory and what it is kept in, side by side.
    fn mirror(directory: &Path, local: &str) -> Mirror {
        let address = format!("file://{}/kept", directory.display());
        Mirror {
            local: directory.join(local),
            ..Mirror::open(Path::new(&address)).unwrap()
        }
    }

    fn write(mirror: &Mirror, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = mirror.local.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn kept(mirror: &Mirror) -> Vec<String> {
        mirror.store.list_all().unwrap().into_keys().collect()
    }

    #[test]
    fn checkpoints_are_sent_whole_and_another_machine_goes_on_from_them() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = mirror(directory.path(), "first");
        first.fetch(&|| false).unwrap();
        write(
            &first,
            &[("config.toml", "a"), ("metrics.jsonl", "1"), (".lock", "")],
        );
        first.send(false).unwrap();
        assert_eq!(kept(&first), Vec::<String>::new(), "no checkpoint yet");
        let step = |number: u32, file: &str| format!("checkpoints/step-00000{number}/{file}");
        let one = [step(1, "adapter.safetensors"), step(1, "state.toml")];
        write(
            &first,
            &[
                (&one[0], "w"),
                (&one[1], "s"),
                ("checkpoints/.tmp-step-000002/x", ""),
            ],
        );
        first.send(false).unwrap();
        let mut expected = vec!["config.toml".to_owned(), "metrics.jsonl".to_owned()];
        expected.splice(0..0, one.clone());
        assert_eq!(kept(&first), expected);

        // Half of the second checkpoint is there when the machine is lost.
        write(&first, &[("metrics.jsonl", "12")]);
        first
            .store
            .replace(&step(2, "adapter.safetensors"), b"v".to_vec())
            .unwrap();
        let mut second = mirror(directory.path(), "second");
        second.fetch(&|| false).unwrap();
        assert_eq!(
            fs::read_to_string(second.local.join("metrics.jsonl")).unwrap(),
            "1"
        );
        assert!(!second.local.join("checkpoints/step-000002").exists());
        fs::remove_dir_all(second.local.join("checkpoints/step-000001")).unwrap();
        let two = [step(2, "adapter.safetensors"), step(2, "state.toml")];
        write(
            &second,
            &[(&two[0], "w2"), (&two[1], "s2"), ("metrics.jsonl", "1,2")],
        );
        second.send(false).unwrap();
        expected.splice(0..2, two.clone());
        assert_eq!(kept(&second), expected, "the old checkpoint is gone");
        // The first machine is back with what it had, and takes what is newer.
        let mut back = mirror(directory.path(), "first");
        back.fetch(&|| false).unwrap();
        assert_eq!(
            fs::read_to_string(back.local.join("metrics.jsonl")).unwrap(),
            "1,2"
        );
        // And the other way: what is newer here stays.
        write(
            &back,
            &[("metrics.jsonl", "1,2,3"), (&step(3, "state.toml"), "s3")],
        );
        back.fetch(&|| false).unwrap();
        assert_eq!(
            fs::read_to_string(back.local.join("metrics.jsonl")).unwrap(),
            "1,2,3"
        );
        back.send(true).unwrap();
        assert!(kept(&back).contains(&step(3, "state.toml")));

        // A fetch that was cut short has fetched the logs, and the next one goes on.
        let mut third = mirror(directory.path(), "third");
        write(
            &third,
            &[("metrics.jsonl", "1"), (&one[0], "w"), (&one[1], "s")],
        );
        let metrics = third.local.join("metrics.jsonl");
        let config = third.local.join("config.toml");
        third.fetch(&|| config.exists()).unwrap_err();
        assert!(!third.local.join(step(3, "state.toml")).exists());
        third.fetch(&|| false).unwrap();
        assert_eq!(fs::read_to_string(&metrics).unwrap(), "1,2,3");
        // What was cut here is fetched, and what was cut there is sent.
        write(
            &third,
            &[("metrics.jsonl", "1"), (&step(3, "state.toml"), "")],
        );
        third.fetch(&|| false).unwrap();
        assert_eq!(fs::read_to_string(&metrics).unwrap(), "1,2,3");
        let last = third.local.join(step(3, "state.toml"));
        assert_eq!(fs::read_to_string(last).unwrap(), "s3");
        third.store.replace(&two[0], Vec::new()).unwrap();
        third.fetch(&|| false).unwrap();
        third.send(true).unwrap();
        assert_eq!(third.store.length(&two[0]).unwrap(), Some(2));
    }

    #[test]
    fn an_address_of_something_else_is_refused_before_anything_is_fetched() {
        let directory = tempfile::tempdir().unwrap();
        let mut mirror = mirror(directory.path(), "local");
        mirror
            .store
            .replace("header", b"of a cache".to_vec())
            .unwrap();
        let refused = mirror.fetch(&|| false).unwrap_err().to_string();
        assert!(refused.contains("no run, but header"), "{refused}");
        assert!(!mirror.local.exists());
    }

    #[test]
    fn names_that_leave_the_directory_are_no_files_of_a_run() {
        for name in ["../x", "/x", "a/../b", ".lock", "a/.tmp"] {
            assert!(!is_plain(name), "{name}");
        }
        assert!(is_plain("checkpoints/step-000001/state.toml"));
        assert_eq!(
            checkpoint_of("checkpoints/step-000001/state.toml"),
            Some("checkpoints/step-000001")
        );
        assert_eq!(checkpoint_of("checkpoints/note"), None);
    }
}
