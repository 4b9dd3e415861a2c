//! Provides the ranks that MPI connects.

use std::{
    thread,
    time::{Duration, Instant},
};

use mpi::{
    Threading,
    environment::Universe,
    request::Request,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives},
};

use super::{Launch, Ranks};
use crate::{Error, Result};

/// How long a rank that waits for the others looks for them without a pause: at the end of a step they come within it.
const EAGER: Duration = Duration::from_millis(2);
/// Between two looks from then on. MPI's own barrier never sleeps, and keeps a core from the rank that it waits for.
const PAUSE: Duration = Duration::from_micros(500);

/// All ranks, for as long as this lives.
pub(super) struct World {
    world: SimpleCommunicator,
    launch: Launch,
    // Dropped last: it ends MPI.
    _universe: Universe,
}

impl World {
    /// Joins the others.
    ///
    /// # Errors
    /// They use another MPI.
    pub fn join(launch: Launch) -> Result<Self> {
        let refused = |reason: String| Err(Error::Config(reason));
        // Only the thread that trains calls it, among many.
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Funneled)
        else {
            return refused("MPI was begun twice in one process".to_owned());
        };
        let world = universe.world();
        let size = usize::try_from(world.size()).unwrap_or(0);
        if size != launch.count {
            return refused(format!(
                "{} processes were started ({}), and the MPI library of this build sees {size}: start it with the mpirun of the MPI that it \
                 was built with, or with srun and the type of MPI that this one takes",
                launch.count, launch.said_by
            ));
        }
        if threading < Threading::Funneled {
            return refused(
                "this MPI library takes programs of one thread only; build with one that supports MPI_THREAD_FUNNELED".to_owned(),
            );
        }
        let rank = usize::try_from(world.rank()).unwrap_or(launch.rank);
        Ok(Self {
            world,
            launch: Launch { rank, ..launch },
            _universe: universe,
        })
    }
}

impl Ranks for World {
    fn rank(&self) -> usize {
        self.launch.rank
    }

    fn count(&self) -> usize {
        self.launch.count
    }

    fn local_rank(&self) -> usize {
        self.launch.local_rank
    }

    fn meet(&self) {
        let since = Instant::now();
        let mut request: Request<'static, ()> = self.world.immediate_barrier();
        while let Err(waiting) = request.test() {
            request = waiting;
            if since.elapsed() < EAGER {
                thread::yield_now();
            } else {
                thread::sleep(PAUSE);
            }
        }
    }

    fn exchange(&self, own: &[u8], theirs: &mut [u8]) {
        self.world.all_to_all_into(own, theirs);
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) {
        self.world.all_gather_into(own, all);
    }

    fn abort(&self, status: u8) -> ! {
        self.world.abort(status.into())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Else the end of MPI waits for ranks that wait for this one.
        if thread::panicking() {
            self.abort(101);
        }
    }
}
