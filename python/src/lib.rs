/*! The extension module of the Python package: what a teacher said about a corpus, read by the code that wrote it.

```text
 cache on disk ──> teacher_server::cache ──> Frame::decode ──> frame ──> ot_distill/__init__.py
```

Numbers are handed over as bytes in the machine's order, which numpy takes as they are: this crate knows no numpy, and one module serves
every Python. Nothing is written and no lock is taken, so a server or a capture goes on beside a reader.
*/

mod cache;
mod frame;

pyo3::create_exception!(
    ot_distill,
    Error,
    pyo3::exceptions::PyException,
    "A cache that cannot be read; the message names the file and what to do."
);

/// What the Python sources of the package import.
#[pyo3::pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use super::{Error, cache::Cache};
}
