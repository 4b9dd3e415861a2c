//! Provides the rules of the lease, without a clock, a connection or a model: events in, actions out.

use std::collections::VecDeque;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A trainer opened a stream and asks for the device.
    Ask {
        /// Names the stream; never used twice.
        stream: u64,
        /// The epoch under which it still has its memory on the device, after a lost connection; `None` where it has none.
        epoch_held: Option<u64>,
    },
    /// A trainer has freed what it had on the device.
    Released {
        /// The epoch under which it had it.
        epoch: u64,
    },
    /// A stream has ended. Its trainer may be gone, or may have lost no more than its connection.
    Closed {
        /// The stream.
        stream: u64,
    },
    /// Whether there is something that only the teacher can do.
    Needed(bool),
    /// The device has room for the teacher's weights.
    Room,
    /// The teacher's weights are on the device.
    Loaded,
    /// They could not be brought there, and nothing of them is.
    LoadFailed,
    /// The teacher has done what its turn was for.
    TurnOver,
    /// The teacher's weights have left the device.
    Freed,
    /// A holder that lost its connection, also to a server before this one, has had the time to come back.
    Settled,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Tell a trainer that the device is its own.
    Grant {
        /// Its stream.
        stream: u64,
        /// Larger than every epoch before it.
        epoch: u64,
    },
    /// Ask the holder to free the device and close its stream.
    Yield {
        /// Its stream.
        stream: u64,
    },
    /// Tell a trainer that what it holds is not its own any more: it has to free it and ask anew.
    Refuse {
        /// Its stream, which ends.
        stream: u64,
    },
    /// End a stream whose trainer has come back on another one.
    Replace {
        /// The old stream.
        stream: u64,
    },
}

/// Who has the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Nobody.
    Nobody,
    /// Nobody; the teacher is next, once there is room.
    AwaitingRoom,
    /// The teacher, which brings its weights there.
    Loading,
    /// The teacher.
    Teacher {
        /// Whether its turn goes on; else it stays for as long as no trainer asks.
        working: bool,
    },
    /// The teacher, which takes its weights away.
    Freeing,
    /// A trainer.
    Trainer {
        /// Its stream.
        stream: u64,
        /// Its epoch.
        epoch: u64,
        /// Whether it was asked to yield.
        yielding: bool,
    },
}

/// What the teacher has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Wait until the device has room for its weights.
    AwaitRoom,
    /// Bring them there.
    Load,
    /// Compute.
    Work,
    /// Take them away.
    Free,
}

/// The lease of one device between one teacher and any number of trainers.
///
/// ```text
///            needed             Room             Loaded              TurnOver, a trainer waits
///  Nobody ────────> AwaitingRoom ───> Loading ─────────> Teacher ───────────────────────────> Freeing
///   ^  │                                                                                        │ Freed
///   │  └── nothing needed, a trainer waits ──> Trainer <────────────────────────────────────────┘
///   └─────────── Released, Closed ───────────── │  ^ needed: Yield
///                                               └──┘
/// ```
///
/// Every use of the device, the teacher's too, has an epoch of its own. A trainer that lost its connection comes back with
/// its epoch and keeps the device only where that is of the latest use; so that nobody does, the device *settles* when its
/// holder's stream ends without a release, and when the server starts: until [`Event::Settled`] only that holder can have it.
#[derive(Debug, Clone)]
pub struct Machine {
    device: Device,
    queue: VecDeque<u64>,
    /// Of the latest use under this server, or `started`.
    epoch: u64,
    /// Below every epoch of this server.
    started: u64,
    /// Of the latest use under the server before.
    former: u64,
    needed: bool,
    settling: bool,
}

impl Machine {
    /// Nobody has the device, as far as this server knows, and it settles. The latest use was under `former`; 0 where nobody
    /// knows. Epochs are above `started`.
    pub fn new(former: u64, started: u64) -> Self {
        Self {
            device: Device::Nobody,
            queue: VecDeque::new(),
            epoch: started,
            started,
            former,
            needed: false,
            settling: true,
        }
    }

    /// Who has the device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Streams of the trainers that wait for it, in their order.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = u64> {
        self.queue.iter().copied()
    }

    /// The epoch of its latest use under this server, or one below all of them.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The epoch of its latest use, also under the server before.
    pub fn latest(&self) -> u64 {
        if self.epoch == self.started {
            self.former
        } else {
            self.epoch
        }
    }

    /// Whether a holder may still come back.
    pub fn is_settling(&self) -> bool {
        self.settling
    }

    /// What the teacher has to do now.
    pub fn task(&self) -> Option<Task> {
        match self.device {
            Device::AwaitingRoom => Some(Task::AwaitRoom),
            Device::Loading => Some(Task::Load),
            Device::Teacher { working: true } => Some(Task::Work),
            Device::Freeing => Some(Task::Free),
            Device::Nobody | Device::Teacher { working: false } | Device::Trainer { .. } => None,
        }
    }

    /// Takes an event in. One that does not fit what is going on changes nothing.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match (event, self.device) {
            (Event::Ask { stream, epoch_held }, _) => match epoch_held {
                None => self.queue.push_back(stream),
                Some(epoch) => self.come_back(stream, epoch, &mut actions),
            },
            (Event::Closed { stream }, device) => {
                self.queue.retain(|waiting| *waiting != stream);
                if matches!(device, Device::Trainer { stream: holder, .. } if holder == stream) {
                    self.device = Device::Nobody;
                    self.settling = true;
                }
            }
            (Event::Released { epoch }, Device::Trainer { epoch: held, .. }) if epoch == held => {
                self.device = Device::Nobody;
            }
            (Event::Needed(needed), _) => self.needed = needed,
            (Event::Room, Device::AwaitingRoom) => {
                self.epoch += 1;
                self.device = Device::Loading;
            }
            (Event::Loaded, Device::Loading) => self.device = Device::Teacher { working: true },
            (Event::LoadFailed, Device::Loading) => {
                self.needed = false;
                self.device = Device::Nobody;
            }
            (Event::TurnOver, Device::Teacher { .. }) => {
                self.device = Device::Teacher { working: false };
            }
            (Event::Freed, Device::Freeing) => {
                self.device = Device::Nobody;
                // It left for a trainer: that one comes first, whatever is needed by now.
                if let Some(stream) = self.queue.pop_front() {
                    self.grant(stream, &mut actions);
                }
            }
            (Event::Settled, _) => self.settling = false,
            _ => {}
        }
        self.advance(&mut actions);
        actions
    }

    /// A trainer says that it has the device since `epoch`.
    fn come_back(&mut self, stream: u64, epoch: u64, actions: &mut Vec<Action>) {
        let unused_since = epoch == self.latest();
        match self.device {
            Device::Trainer { stream: before, .. } if unused_since => {
                actions.push(Action::Replace { stream: before });
                self.grant(stream, actions);
            }
            Device::Nobody | Device::AwaitingRoom if unused_since => self.grant(stream, actions),
            _ => actions.push(Action::Refuse { stream }),
        }
    }

    fn grant(&mut self, stream: u64, actions: &mut Vec<Action>) {
        self.epoch += 1;
        self.settling = false;
        self.device = Device::Trainer {
            stream,
            epoch: self.epoch,
            yielding: false,
        };
        let epoch = self.epoch;
        actions.push(Action::Grant { stream, epoch });
    }

    /// Goes on for as long as nothing has to be waited for.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        loop {
            match self.device {
                Device::Nobody if self.settling => return,
                Device::Nobody if self.needed => self.device = Device::AwaitingRoom,
                Device::Nobody => match self.queue.pop_front() {
                    Some(stream) => self.grant(stream, actions),
                    None => return,
                },
                Device::AwaitingRoom if !self.needed => self.device = Device::Nobody,
                Device::Teacher { working: false } if !self.queue.is_empty() => {
                    self.device = Device::Freeing;
                }
                Device::Teacher { working: false } if self.needed => {
                    self.device = Device::Teacher { working: true };
                }
                Device::Trainer {
                    stream,
                    epoch,
                    yielding: false,
                } if self.needed => {
                    self.device = Device::Trainer {
                        stream,
                        epoch,
                        yielding: true,
                    };
                    actions.push(Action::Yield { stream });
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
