//! Provides ranks that are threads of one process, for tests without MPI.

use std::{
    sync::{Barrier, Mutex},
    thread,
};

use super::Ranks;

/// What all threads share.
struct Shared {
    barrier: Barrier,
    /// What each has put down for the others.
    table: Vec<Mutex<Vec<u8>>>,
}

/// One of them.
struct Thread<'a> {
    rank: usize,
    shared: &'a Shared,
}

/// What each of `count` ranks comes to that do `work`, in their order.
pub(crate) fn run<T: Send>(count: usize, work: impl Fn(&dyn Ranks) -> T + Sync) -> Vec<T> {
    let shared = Shared {
        barrier: Barrier::new(count),
        table: (0..count).map(|_| Mutex::default()).collect(),
    };
    let (shared, work) = (&shared, &work);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|rank| scope.spawn(move || work(&Thread { rank, shared })))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.collect()
    })
}

impl Thread<'_> {
    /// Has `look` see what every rank has put down, when all have.
    fn show(&self, own: &[u8], mut look: impl FnMut(usize, &[u8])) {
        *self.shared.table[self.rank].lock().unwrap() = own.to_vec();
        self.meet();
        for (rank, of) in self.shared.table.iter().enumerate() {
            look(rank, &of.lock().unwrap());
        }
        self.meet();
    }
}

impl Ranks for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.shared.table.len()
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn meet(&self) {
        self.shared.barrier.wait();
    }

    fn exchange(&self, own: &[u8], theirs: &mut [u8]) {
        let piece = own.len() / self.count();
        assert_eq!(own.len(), piece * self.count());
        self.show(own, |rank, of| {
            let from = self.rank * piece;
            theirs[rank * piece..][..piece].copy_from_slice(&of[from..][..piece]);
        });
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) {
        assert_eq!(all.len(), own.len() * self.count());
        self.show(own, |rank, of| {
            all[rank * own.len()..][..own.len()].copy_from_slice(of);
        });
    }

    fn abort(&self, status: u8) -> ! {
        panic!("rank {} ends all with {status}", self.rank)
    }
}
