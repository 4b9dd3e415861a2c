//! Provides the members of a cache: which of its sequences are those of the corpus that it was last filled for.
//!
//! A cache keeps what its corpus held once, since an edit may be taken back. What is served is the corpus as it is now.

use std::collections::{HashMap, HashSet};

use distill_proto::{Fingerprint, v1};

use super::{Access, Cache, MEMBERS, files::Files, sealed, storage::Storage};
use crate::{Error, Result, plan::Served};

/// The corpus that a cache was last filled for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// Names it; unset where it is all of the cache in its order.
    pub corpus: Option<Fingerprint>,
    /// Places of its sequences, in order.
    pub served: Served,
}

/// The number and the message of the latest list; `None` where there never was one.
///
/// # Errors
/// `Cache` where it is damaged; `Io`.
pub(super) fn latest(
    files: &dyn Files,
    storage: &Storage,
) -> Result<Option<(u32, v1::CacheMembers)>> {
    let Some(number) = numbers(files)?.into_iter().max() else {
        return Ok(None);
    };
    let message = sealed::get::<v1::CacheMembers>(storage, &name(number))?;
    Ok(message.map(|message| (number, message)))
}

/// Numbers of the lists that are there.
///
/// # Errors
/// `Io` naming the place.
pub(super) fn numbers(files: &dyn Files) -> Result<Vec<u32>> {
    let names = files.list(MEMBERS)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Name of a list.
pub(super) fn name(number: u32) -> String {
    format!("{MEMBERS}/{number:05}")
}

impl Members {
    /// Reads a list of places below `count`.
    ///
    /// # Errors
    /// What does not fit.
    pub fn from_message(
        message: &v1::CacheMembers,
        count: u64,
    ) -> std::result::Result<Self, String> {
        let refuse = |reason: &str| Err(reason.to_owned());
        let Some(corpus) = Fingerprint::from_hex(&message.corpus_fingerprint) else {
            return refuse("names no corpus");
        };
        if message.first_places.len() != message.lengths.len() {
            return refuse("has runs without a length");
        }
        let (mut places, mut seen) = (Vec::new(), HashSet::new());
        for (&first, &length) in message.first_places.iter().zip(&message.lengths) {
            let end = first.checked_add(length).filter(|&end| end <= count);
            let Some(end) = end else {
                return refuse("names sequences that are not in the segments");
            };
            for place in first..end {
                if !seen.insert(place) {
                    return refuse("names a sequence twice");
                }
                places.push(place);
            }
        }
        if places.is_empty() {
            return refuse("names no sequence");
        }
        Ok(Self::of(corpus, places, count))
    }

    fn of(corpus: Fingerprint, places: Vec<u64>, count: u64) -> Self {
        let served = Served::of(places, count);
        Self {
            corpus: served.places().map(|_| corpus),
            served,
        }
    }
}

/// Places as runs of neighbours.
fn runs(places: impl IntoIterator<Item = u64>) -> (Vec<u64>, Vec<u64>) {
    let (mut firsts, mut lengths): (Vec<u64>, Vec<u64>) = Default::default();
    for place in places {
        match (firsts.last(), lengths.last_mut()) {
            (Some(first), Some(length)) if first + *length == place => *length += 1,
            _ => {
                firsts.push(place);
                lengths.push(1);
            }
        }
    }
    (firsts, lengths)
}

impl Cache {
    /// From now on the sequences of the corpus named `corpus` are served, whose `ids` these are, in order; all of them are in
    /// the cache. Written only where it was otherwise.
    ///
    /// # Errors
    /// `Io` naming the place; `Internal` where one is not in the cache.
    pub fn set_members(&mut self, corpus: Fingerprint, ids: &[u64]) -> Result<()> {
        debug_assert!(self.access == Access::Write);
        let entries = self.segments.iter().flat_map(|segment| &segment.entries);
        let known: HashMap<u64, u64> = entries.map(|entry| entry.id).zip(0..).collect();
        let missing = || Error::Internal("a sequence of the corpus is not in its cache".into());
        let places = ids.iter().map(|id| known.get(id).copied());
        let places = places.collect::<Option<Vec<u64>>>().ok_or_else(missing)?;
        let members = Members::of(corpus, places, self.count());
        if members == self.members {
            return Ok(());
        }
        let places = 0..members.served.count(self.count());
        let places = places.filter_map(|at| members.served.place(at, self.count()));
        let (first_places, lengths) = runs(places);
        let message = v1::CacheMembers {
            corpus_fingerprint: corpus.to_hex(),
            first_places,
            lengths,
        };
        let next = numbers(self.files.as_ref())?.into_iter().max();
        let name = name(next.map_or(0, |last| last.saturating_add(1)));
        sealed::put(&self.storage, &name, &message)?;
        self.members = members;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_in_their_order_and_what_does_not_fit_is_refused() {
        let corpus = Fingerprint::of(b"corpus");
        let message = |places: &[u64]| {
            let (first_places, lengths) = runs(places.iter().copied());
            v1::CacheMembers {
                corpus_fingerprint: corpus.to_hex(),
                first_places,
                lengths,
            }
        };
        let places = [4, 5, 6, 0, 9, 8];
        let written = message(&places);
        assert_eq!(written.first_places, [4, 0, 9, 8]);
        assert_eq!(written.lengths, [3, 1, 1, 1]);
        let read = Members::from_message(&written, 10).unwrap();
        assert_eq!(read.corpus, Some(corpus));
        assert_eq!(read.served.places(), Some(&places[..]));
        assert_eq!(read.served.position(0), Some(3));
        assert_eq!(read.served.position(1), None);
        // All of a cache is named as it would be without a list.
        let all = Members::from_message(&message(&[0, 1, 2]), 3).unwrap();
        assert_eq!(all, Members::default());
        assert_eq!(
            (all.served.position(2), all.served.place(3, 3)),
            (Some(2), None)
        );

        for (wrong, reason) in [
            (message(&places[..5]), "not in the segments"),
            (message(&[1, 2, 1]), "twice"),
            (message(&[]), "no sequence"),
            (
                v1::CacheMembers {
                    lengths: vec![1],
                    ..message(&[1, 3])
                },
                "without a length",
            ),
            (
                v1::CacheMembers {
                    lengths: vec![u64::MAX],
                    ..message(&[1])
                },
                "not in the segments",
            ),
            (
                v1::CacheMembers {
                    corpus_fingerprint: String::new(),
                    ..message(&[1])
                },
                "no corpus",
            ),
        ] {
            let error = Members::from_message(&wrong, 9).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
