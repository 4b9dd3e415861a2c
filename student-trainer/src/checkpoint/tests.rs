use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
};

use candle_core::{DType, Device, Tensor, Var};

use super::*;

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It fails, the ones after it work: a full disk that someone clears.
    Once,
    /// The power goes: nothing after it happens, files that were not synced are cut in half, and renames whose directory
    /// was not synced are lost.
    PowerLoss,
    /// As that, but those renames had reached the disk.
    PowerLossAfterRenames,
}

/// The file system, with one operation that fails.
struct FaultyDisk {
    fault: Fault,
    /// Operations before it.
    left: Cell<usize>,
    done: Cell<usize>,
    unsynced: RefCell<BTreeSet<PathBuf>>,
    renamed: RefCell<Vec<(PathBuf, PathBuf)>>,
}

fn refusal(path: &Path, reason: io::Error) -> Error {
    Error::io("change", path)(reason)
}

impl FaultyDisk {
    fn new(fault: Fault, at: usize) -> Self {
        Self {
            fault,
            left: Cell::new(at),
            done: Cell::new(0),
            unsynced: RefCell::default(),
            renamed: RefCell::default(),
        }
    }

    fn never() -> Self {
        Self::new(Fault::Once, usize::MAX)
    }

    fn run(&self, path: &Path, operation: impl FnOnce() -> Result<()>) -> Result<()> {
        self.done.set(self.done.get() + 1);
        match (self.left.get(), self.fault) {
            (0, Fault::Once) => self.left.set(usize::MAX),
            (0, _) => return Err(refusal(path, io::Error::other("the power is gone"))),
            (left, _) => {
                self.left.set(left - 1);
                return operation();
            }
        }
        Err(refusal(path, io::ErrorKind::StorageFull.into()))
    }

    /// What is on the disk when the power comes back.
    fn settle(&self) {
        if self.fault == Fault::Once {
            return;
        }
        for path in self.unsynced.borrow().iter() {
            if let Ok(bytes) = fs::read(path) {
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }
        }
        if self.fault == Fault::PowerLoss {
            for (from, to) in self.renamed.borrow().iter().rev() {
                // A file that the rename replaced cannot come back here, so only directories move back.
                if to.is_dir() && !to.is_symlink() {
                    fs::rename(to, from).unwrap();
                }
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.run(path, || RealDisk.create_dir(path))
    }

    fn write(&self, path: &Path, content: &Content) -> Result<()> {
        self.unsynced.borrow_mut().insert(path.to_owned());
        self.run(path, || RealDisk.write(path, content))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        self.run(path, || {
            self.unsynced.borrow_mut().remove(path);
            let in_it = |(_, to): &(PathBuf, PathBuf)| to.parent() == Some(path);
            self.renamed.borrow_mut().retain(|rename| !in_it(rename));
            RealDisk.sync(path)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.run(to, || {
            self.renamed
                .borrow_mut()
                .push((from.to_owned(), to.to_owned()));
            RealDisk.rename(from, to)
        })
    }

    fn symlink(&self, target: &Path, link: &Path) -> Result<()> {
        self.run(link, || RealDisk.symlink(target, link))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.run(path, || RealDisk.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        self.run(path, || RealDisk.remove_dir(path))
    }
}

pub(super) fn state(step: usize, best: Option<usize>) -> RunState {
    let mut state = RunState::start(100, Identity::default());
    state.step = step;
    state.evals.best = best.map(|step| Best { step, value: 1.0 });
    state
}

pub(super) fn files(step: usize) -> Vec<(&'static str, Content)> {
    let tensor = Tensor::full(step as f32, 64, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([("weight".to_owned(), tensor)]);
    vec![
        ("model.safetensors", Content::Tensors(tensors)),
        ("config.json", Content::Bytes(b"{}".to_vec())),
    ]
}

fn save<D: Disk>(checkpoints: &Checkpoints<D>, step: usize, best: Option<usize>) -> Result<()> {
    checkpoints.save(state(step, best), files(step)).map(drop)
}

pub(super) fn open(run: &Path) -> Checkpoints {
    Checkpoints::open(run, 2).unwrap()
}

/// The step of the newest checkpoint, after a look into its tensors.
pub(super) fn latest(run: &Path) -> Option<usize> {
    let checkpoint = open(run).latest().unwrap()?;
    let tensors = checkpoint.tensors("model.safetensors").unwrap();
    let values = tensors["weight"].to_vec1::<f32>().unwrap();
    assert_eq!(values, vec![checkpoint.state.step as f32; 64]);
    Some(checkpoint.state.step)
}

#[test]
fn the_newest_and_the_best_stay_and_best_points_to_its_own() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(latest(dir.path()), None);
    let checkpoints = open(dir.path());
    for (step, best) in [(10, 10), (20, 20), (30, 20), (40, 20), (50, 20)] {
        save(&checkpoints, step, Some(best)).unwrap();
        let best = format!("checkpoints/step-{best:06}");
        assert_eq!(
            fs::read_link(dir.path().join("best")).unwrap(),
            Path::new(&best)
        );
    }
    assert_eq!(checkpoints.steps().unwrap(), [20, 40, 50]);
    assert_eq!(latest(dir.path()), Some(50));
    assert!(dir.path().join("best/model.safetensors").is_file());
}

/// Lets every operation of saving step 30 over 10 and 20 fail in one way.
fn every_operation(fault: Fault) {
    let operations = {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::never();
        let checkpoints = Checkpoints::on(disk, dir.path(), 2).unwrap();
        save(&checkpoints, 10, Some(10)).unwrap();
        save(&checkpoints, 20, Some(10)).unwrap();
        let before = checkpoints.disk.done.get();
        save(&checkpoints, 30, Some(30)).unwrap();
        checkpoints.disk.done.get() - before
    };
    // A directory, two files and the state, each written and synced, the directory synced, renamed and synced again; the
    // link made, renamed and synced; the oldest renamed and removed.
    assert_eq!(operations, 1 + 3 * 2 + 3 + 3 + 2);
    let (mut old, mut new) = (0, 0);
    for at in 0..operations {
        let dir = tempfile::tempdir().unwrap();
        save(&open(dir.path()), 10, Some(10)).unwrap();
        save(&open(dir.path()), 20, Some(10)).unwrap();
        let faulty = Checkpoints::on(FaultyDisk::new(fault, at), dir.path(), 2).unwrap();
        let error = save(&faulty, 30, Some(30)).unwrap_err().to_string();
        assert!(
            error.contains(&dir.path().display().to_string()),
            "operation {at}: no path in {error}"
        );
        faulty.disk.settle();
        match latest(dir.path()) {
            Some(20) => old += 1,
            Some(30) => new += 1,
            other => panic!("{fault:?} at operation {at}: the newest is {other:?}"),
        }
        // What the link points to is whole whenever it is followed.
        let best = fs::read_link(dir.path().join("best")).unwrap();
        assert!(
            dir.path().join(&best).join(STATE_FILE).is_file(),
            "{fault:?} at operation {at}: best points to {}, which is not there",
            best.display()
        );
        // And life goes on.
        let checkpoints = open(dir.path());
        checkpoints.point_to_best(Some(20)).unwrap();
        save(&checkpoints, 40, Some(40)).unwrap();
        assert_eq!(latest(dir.path()), Some(40));
        assert_eq!(checkpoints.steps().unwrap().len(), 2);
        let names = checkpoints.names().unwrap();
        assert!(!names.iter().any(|name| name.starts_with(TEMPORARY)));
    }
    assert!(old >= 9 && new >= 3, "{old} {new}");
}

#[test]
fn a_failure_of_any_operation_leaves_the_earlier_checkpoint_usable() {
    every_operation(Fault::Once);
}

#[test]
fn a_power_loss_at_any_operation_leaves_the_earlier_or_the_new_checkpoint() {
    every_operation(Fault::PowerLoss);
    every_operation(Fault::PowerLossAfterRenames);
}

#[test]
fn the_same_checkpoint_can_be_written_again_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::on(FaultyDisk::new(Fault::Once, 8), dir.path(), 2).unwrap();
    save(&checkpoints, 10, None).unwrap_err();
    save(&checkpoints, 10, None).unwrap();
    assert_eq!(latest(dir.path()), Some(10));
}

#[test]
fn values_come_back_into_the_parameters_or_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = open(dir.path());
    save(&checkpoints, 7, None).unwrap();
    let checkpoint = checkpoints.latest().unwrap().unwrap();
    let var = |length: usize| {
        let zeros = Tensor::zeros(length, DType::F32, &Device::Cpu).unwrap();
        Var::from_tensor(&zeros).unwrap()
    };
    let parameter = var(64);
    let restore = |name: &str, var: &Var| {
        checkpoint.restore("model.safetensors", &[(name.to_owned(), var.clone())])
    };
    restore("weight", &parameter).unwrap();
    assert_eq!(parameter.to_vec1::<f32>().unwrap(), vec![7.0; 64]);
    let missing = restore("other", &parameter).unwrap_err().to_string();
    assert!(missing.contains("no tensor other"), "{missing}");
    let shape = restore("weight", &var(3)).unwrap_err().to_string();
    assert!(shape.contains("weight has shape [64]"), "{shape}");
}

#[test]
fn a_file_changed_after_the_checkpoint_was_opened_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = open(dir.path());
    save(&checkpoints, 7, None).unwrap();
    let checkpoint = checkpoints.latest().unwrap().unwrap();
    let path = checkpoint.directory.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = checkpoint.tensors("model.safetensors").unwrap_err();
    assert!(
        error.to_string().contains("not as it was written"),
        "{error}"
    );
}
