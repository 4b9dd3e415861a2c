/*! Training by several processes, one for each device: MPI's ranks.

```text
 mpirun, srun ──> launch: which rank of how many ──> join ──> Ranks: Alone, or MPI's
                                                                │
 frames of a step ──> Share: the n-th part of them ──> gradients ─┴─> sum: in the order of the ranks ──> the same update in all
```

Every rank has the teacher send it the frames of its share of every step, and computes these; the sums of gradients are the same bits in all
ranks, so each makes the same update, and what else is decided from them (clipping, the loss's scale, what is not finite) is
decided alike. What only one process can know (a signal, an evaluation) is agreed before anybody acts on it. Rank 0 writes
everything; the others compute.
*/

mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod sum;
#[cfg(test)]
pub(crate) mod threads;

pub use launch::Launch;
pub(crate) use sum::sum;

use std::{ops::Range, time::Duration};

use distill_program::{Signal, console};

use crate::{Error, Result, shutdown::Shutdown};

/// The processes that train one student together. All of them call the same of these in the same order.
pub trait Ranks {
    /// Which one this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Which one of those on this machine this is, from 0.
    fn local_rank(&self) -> usize;

    /// Waits until all are here, for long where one has other work.
    fn meet(&self);

    /// Gives every rank its piece of `own`, in their order, and puts into `theirs` the pieces that they have for this one.
    fn exchange(&self, own: &[u8], theirs: &mut [u8]);

    /// Puts what every rank has into `all`, in their order; each has as much.
    fn gather(&self, own: &[u8], all: &mut [u8]);

    /// Ends all of them, with this exit status.
    fn abort(&self, status: u8) -> !;
}

/// One process, which has nobody to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn meet(&self) {}

    fn exchange(&self, own: &[u8], theirs: &mut [u8]) {
        theirs.copy_from_slice(own);
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) {
        all.copy_from_slice(own);
    }

    fn abort(&self, status: u8) -> ! {
        std::process::exit(status.into())
    }
}

impl dyn Ranks + '_ {
    /// Whether there is no other.
    pub fn is_alone(&self) -> bool {
        self.count() == 1
    }

    /// Whether this is the one that writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// What this one computes of every step.
    pub fn share(&self) -> Share {
        Share {
            rank: self.rank(),
            of: self.count(),
        }
    }

    /// What the first does before the others do it.
    ///
    /// # Errors
    /// Those of the work.
    pub fn after_first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.is_first() {
            self.meet();
        }
        let done = work()?;
        if self.is_first() {
            self.meet();
        }
        Ok(done)
    }

    /// Whether all say so.
    pub fn all(&self, says: bool) -> bool {
        self.all_have(&[u64::from(says)])
            .iter()
            .all(|said| said == &[1])
    }

    /// The numbers of every rank, in their order; each has as many.
    pub fn all_have(&self, own: &[u64]) -> Vec<Vec<u64>> {
        let mut all = vec![0; own.len() * self.count()];
        self.meet();
        self.gather(
            bytemuck::cast_slice(own),
            bytemuck::cast_slice_mut(&mut all),
        );
        all.chunks(own.len()).map(<[u64]>::to_vec).collect()
    }
}

/// What one rank computes of every step: frames in a row, as many as any other's or one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The rank.
    pub rank: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// Everything.
    pub const ALL: Self = Self { rank: 0, of: 1 };

    /// Places of this rank's among the `count` frames of a step.
    pub fn places(self, count: u64) -> Range<u64> {
        let of = self.of.max(1) as u64;
        let start = |rank: usize| count.saturating_mul(rank as u64) / of;
        start(self.rank)..start(self.rank + 1)
    }
}

/// How long a rank with an error waits for the first one, where both have the same: its word ends all.
const PRECEDENCE: Duration = Duration::from_secs(2);

/// Says which rank ends with this error, and ends all.
pub fn end_all(ranks: &dyn Ranks, error: &Error, shutdown: &Shutdown) -> ! {
    if !ranks.is_first() {
        std::thread::sleep(PRECEDENCE);
    }
    let (rank, count) = (ranks.rank(), ranks.count());
    console::say(format_args!("error: rank {rank} of {count}: {error}"));
    ranks.abort(if error.is_stop() {
        let signal = shutdown.signal().unwrap_or(Signal::Interrupt);
        signal.exit_status()
    } else {
        1
    })
}

/// The ranks that this process is one of, as what started it says.
///
/// # Errors
/// There are several, and this build or its MPI library cannot reach the others.
pub fn join() -> Result<Box<dyn Ranks>> {
    match Launch::of_this_process()? {
        Some(launch) if launch.count > 1 => several(launch),
        _ => {
            if let Some((variable, count)) = Launch::apart() {
                tracing::warn!(
                    "{variable} is {count}, and nothing here is MPI's: if {count} of these were started, each trains alone; mpirun, or \
                     srun --mpi=pmix, starts ranks that train together"
                );
            }
            Ok(Box::new(Alone))
        }
    }
}

#[cfg(feature = "mpi")]
fn several(launch: Launch) -> Result<Box<dyn Ranks>> {
    Ok(Box::new(mpi::World::join(launch)?))
}

#[cfg(not(feature = "mpi"))]
fn several(launch: Launch) -> Result<Box<dyn Ranks>> {
    Err(Error::Config(format!(
        "this is one of {} processes that train together ({}), and this build cannot: build it with --features \
         student-trainer/mpi (docs/scale.md says what that needs), or start one process",
        launch.count, launch.said_by
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_one_rank_s_whatever_their_number() {
        for of in 1..=5 {
            for count in 0..9 {
                let shares = (0..of).map(|rank| Share { rank, of }.places(count));
                let (least, most) = (count / of as u64, count.div_ceil(of as u64));
                let taken: Vec<u64> = shares
                    .inspect(|one| assert!((least..=most).contains(&(one.end - one.start))))
                    .flatten()
                    .collect();
                assert_eq!(taken, (0..count).collect::<Vec<_>>(), "{of} ranks");
            }
        }
        assert_eq!(Share { rank: 2, of: 3 }.places(8), 5..8);
        assert_eq!(Share::ALL.places(3), 0..3);
    }

    #[test]
    fn one_process_agrees_with_itself() {
        let alone: &dyn Ranks = &Alone;
        assert!(alone.is_alone() && alone.is_first() && alone.share() == Share::ALL);
        assert!(alone.all(true) && !alone.all(false));
        assert_eq!(alone.all_have(&[3, 4]), [[3, 4]]);
    }

    #[test]
    fn ranks_agree_only_where_all_do_and_hear_all() {
        let found = threads::run(3, |ranks| {
            let number = u64::try_from(ranks.rank()).unwrap();
            (
                ranks.all(true),
                ranks.all(number != 1),
                ranks.all_have(&[number, 10 * number]),
            )
        });
        let all = vec![vec![0, 0], vec![1, 10], vec![2, 20]];
        assert_eq!(found, vec![(true, false, all); 3]);
    }
}
