//! Provides an open cache: how it was captured, and those of its frames that are there.

use std::path::{Path, PathBuf};

use distill_proto::v1::GetServerInfoResponse;
use pyo3::{exceptions::PyIndexError, prelude::*, types::PyDict};
use teacher_server::{
    cache::{self, Access, CacheStore},
    store::BlockStore,
};

use crate::{Error, frame};

/// A cache of `teacher-server`, open for reading.
#[pyclass(frozen, subclass, module = "ot_distill._native")]
pub struct Cache {
    cache: cache::Cache,
    store: CacheStore,
    info: GetServerInfoResponse,
    /// Places in the plan's order of the frames that are there, in the order in which they are served.
    places: Vec<u64>,
}

impl Cache {
    fn find(path: &Path) -> teacher_server::Result<Self> {
        let cache = cache::Cache::find(path, Access::Read)?;
        let store = cache.store()?;
        let (served, count) = (cache.served(), cache.count());
        let places = (0..served.count(count))
            .filter_map(|position| served.place(position, count))
            .filter(|&place| store.contains(place))
            .collect();
        Ok(Self {
            info: cache.info(),
            places,
            cache,
            store,
        })
    }
}

/// A failure as Python is told of it.
fn raise(error: teacher_server::Error) -> PyErr {
    Error::new_err(error.to_string())
}

#[pymethods]
impl Cache {
    #[new]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| Self::find(&path)).map_err(raise)
    }

    /// Frames that are there.
    fn __len__(&self) -> usize {
        self.places.len()
    }

    /// The fields of the frame at `position` of those that are there.
    fn fields<'py>(&self, py: Python<'py>, position: usize) -> PyResult<Bound<'py, PyDict>> {
        let outside = || {
            let count = self.places.len();
            PyIndexError::new_err(format!("frame {position} of a cache with {count} of them"))
        };
        let &place = self.places.get(position).ok_or_else(outside)?;
        let read = || match self.store.get(place)? {
            Some(block) => self.cache.decode(&block).map(Some),
            None => Ok(None),
        };
        let sealed = || {
            let path = self.cache.path().display();
            Error::new_err(format!(
                "cache {path}: frame {place} was moved into a sealed shard since the cache was opened; open it again"
            ))
        };
        let frame = py.detach(read).map_err(raise)?.ok_or_else(sealed)?;
        frame::fields(py, &frame)
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.cache.path().to_owned()
    }

    /// The settings that it was captured with, TOML.
    #[getter]
    fn settings(&self) -> &str {
        self.cache.settings()
    }

    /// Sequences of the corpus, with those that are still to be computed.
    #[getter]
    fn sequences(&self) -> u64 {
        self.info.sequence_count
    }

    /// Name of the teacher's directory.
    #[getter]
    fn model(&self) -> &str {
        &self.info.model_name
    }

    #[getter]
    fn plan_fingerprint(&self) -> &str {
        &self.info.plan_fingerprint
    }

    #[getter]
    fn tokenizer_fingerprint(&self) -> &str {
        &self.info.tokenizer_fingerprint
    }

    /// Every id is below it.
    #[getter]
    fn vocab_size(&self) -> u32 {
        self.info.effective_vocab_size
    }
}
