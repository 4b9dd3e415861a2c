//! Provides the lease as the server runs it: the rules, with the trainers' streams and the clock around them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use distill_model::DeviceMemory;
use distill_proto::v1::{Granted, HoldDeviceResponse, Yield, hold_device_response};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Action, Device, Event, Machine, Record, Secret, Task};
use crate::{Error, Result, printable::printable};

/// Trainers that hold the device or wait for it.
pub const HOLDERS_MAX: usize = 64;
/// Characters of a trainer's name for itself that are repeated to others.
pub const HOLDER_CHARS_MAX: usize = 64;

/// Where a trainer's stream takes its messages; it holds at least a grant, a yield and an error.
pub type Messages = mpsc::Sender<std::result::Result<HoldDeviceResponse, Status>>;

/// Hears that somebody got the device, is asked for it, or has left it: `loading`, `loaded`, `leaving` and `free`, or `granted` and
/// `yielding` with the name of the trainer; and the epoch.
pub type Report = Box<dyn Fn(&str, Option<&str>, u64) + Send>;

/// Names a grant, as its holder does.
#[derive(Clone, Copy)]
pub struct Grant<'a> {
    /// Of the grant.
    pub epoch: u64,
    /// What came with it.
    pub secret: &'a [u8],
}

/// How long things may take, and how much is done in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseOptions {
    /// Sequences that the teacher computes in a turn for each who needs some.
    pub window: usize,
    /// Time that a holder gets to yield before others are told that it does not.
    pub yield_timeout: Duration,
    /// Time that a holder without a connection gets to come back.
    pub settle: Duration,
    /// Time that the device's memory gets to become free before others are told that it does not.
    pub room_patience: Duration,
}

impl LeaseOptions {
    /// With a window, and the seconds that a holder gets to yield.
    pub fn new(window: usize, yield_timeout_s: u64) -> Self {
        Self {
            window,
            yield_timeout: Duration::from_secs(yield_timeout_s),
            // A trainer tries every half second.
            settle: Duration::from_secs(3),
            room_patience: Duration::from_secs(30),
        }
    }
}

/// A trainer's stream.
struct Stream {
    name: String,
    messages: Messages,
}

/// The lease of the device.
pub struct Lease {
    machine: Machine,
    /// Of the latest use of the device; known to its holder alone, and to nobody where that is the teacher.
    secret: Secret,
    record: Record,
    options: LeaseOptions,
    report: Report,
    streams: HashMap<u64, Stream>,
    next_stream: u64,
    /// When a device that settles has done so.
    settled_at: Option<Instant>,
    /// When the device came to where it is.
    since: Instant,
    /// What keeps the teacher from its turn while the device is where it is, told to those who wait for it.
    trouble: Option<Arc<Error>>,
    /// Why the teacher could not be loaded. It is not tried again before somebody asks anew, whoever has the device meanwhile.
    broken: Option<Arc<Error>>,
}

impl Lease {
    /// A lease that settles first, so that the holder in `record` can come back.
    pub fn new(options: LeaseOptions, report: Report, record: Record) -> Self {
        // Grants take longer than a millisecond, so no server's epochs reach those of the one after it.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let started = since_1970.map_or(0, |time| time.as_millis() as u64);
        let (former, secret) = record.read().unwrap_or_else(|| (0, Secret::random()));
        let now = Instant::now();
        Self {
            machine: Machine::new(former, started.max(former)),
            secret,
            record,
            options,
            report,
            streams: HashMap::new(),
            next_stream: 0,
            settled_at: Some(now + options.settle),
            since: now,
            trouble: None,
            broken: None,
        }
    }

    /// How it was set up.
    pub fn options(&self) -> LeaseOptions {
        self.options
    }

    /// What the teacher has to do now.
    pub fn task(&self) -> Option<Task> {
        self.machine.task()
    }

    /// Trainers that wait for the device.
    pub fn waiting(&self) -> usize {
        self.machine.waiting().len()
    }

    /// Name of the trainer that has the device.
    pub fn holder(&self) -> Option<&str> {
        match self.machine.device() {
            Device::Trainer { stream, .. } => Some(
                self.streams
                    .get(&stream)
                    .map_or("", |one| one.name.as_str()),
            ),
            _ => None,
        }
    }

    /// What keeps the teacher from its turn, if something does.
    pub fn trouble(&self) -> Option<Arc<Error>> {
        self.trouble.as_ref().or(self.broken.as_ref()).cloned()
    }

    /// A trainer asks for the device; gives the name of its stream.
    ///
    /// # Errors
    /// `StaleEpoch` where `held` is not the latest grant, `Busy` above `HOLDERS_MAX`, `HolderHung` while the holder does not yield.
    pub fn ask(&mut self, name: &str, held: Option<Grant<'_>>, messages: Messages) -> Result<u64> {
        if held.is_some_and(|grant| !self.is_latest(grant)) {
            return Err(Error::StaleEpoch);
        }
        if self.streams.len() >= HOLDERS_MAX {
            return Err(Error::Busy {
                what: "HoldDevice streams",
                limit: HOLDERS_MAX,
            });
        }
        let hung = self.trouble.clone().filter(|_| self.holder().is_some());
        if let (Some(hung), None) = (hung, held) {
            return Err(Error::Production(hung));
        }
        let mut name = printable(name, HOLDER_CHARS_MAX);
        if name.trim().is_empty() {
            name = "a trainer without a name".to_owned();
        }
        let stream = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(stream, Stream { name, messages });
        let epoch_held = held.map(|grant| grant.epoch);
        self.apply(Event::Ask { stream, epoch_held });
        Ok(stream)
    }

    /// Whether a grant is that of the latest use of the device. Which half of it is wrong is not told.
    fn is_latest(&self, grant: Grant<'_>) -> bool {
        self.secret.is(grant.secret) && grant.epoch == self.machine.latest()
    }

    /// A trainer's stream has ended.
    pub fn closed(&mut self, stream: u64) {
        self.apply(Event::Closed { stream });
        self.streams.remove(&stream);
    }

    /// A trainer has freed the device that it held.
    ///
    /// # Errors
    /// `StaleEpoch` where it is not the holder, or not any more.
    pub fn released(&mut self, grant: Grant<'_>) -> Result<()> {
        let Grant { epoch, .. } = grant;
        match self.machine.device() {
            Device::Trainer { epoch: held, .. } if held == epoch && self.is_latest(grant) => {
                // It is over: nobody comes back with it, before the next one's turn.
                self.forget_secret();
                self.apply(Event::Released { epoch });
                Ok(())
            }
            _ => Err(Error::StaleEpoch),
        }
    }

    /// Whether there is something that only the teacher can do.
    pub fn needed(&mut self, needed: bool) {
        self.apply(Event::Needed(needed && self.broken.is_none()));
    }

    /// Somebody asks anew: what failed for good is tried again.
    pub fn retry(&mut self) {
        self.broken = None;
    }

    /// The device has room for the teacher.
    pub fn room(&mut self) {
        self.apply(Event::Room);
    }

    /// The device has no room for the teacher. True where that has been so for too long, for the first time.
    pub fn no_room(&mut self, needed_bytes: u64, memory: DeviceMemory) -> bool {
        let patient = self.since.elapsed() < self.options.room_patience;
        if patient || self.trouble.is_some() {
            return false;
        }
        self.trouble = Some(Arc::new(Error::NoRoom {
            needed_bytes,
            free_bytes: memory.free_bytes,
            total_bytes: memory.total_bytes,
        }));
        true
    }

    /// The teacher is on the device.
    pub fn loaded(&mut self) {
        self.apply(Event::Loaded);
    }

    /// The teacher could not be brought to the device.
    pub fn load_failed(&mut self, error: Arc<Error>) {
        self.broken = Some(error);
        self.apply(Event::LoadFailed);
    }

    /// The teacher has done what its turn was for.
    pub fn turn_over(&mut self) {
        self.apply(Event::TurnOver);
    }

    /// The teacher has left the device.
    pub fn freed(&mut self) {
        self.apply(Event::Freed);
    }

    /// When [`Self::tick`] has something to do, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let overdue = match self.machine.device() {
            Device::Trainer { yielding: true, .. } if self.trouble.is_none() => {
                Some(self.since + self.options.yield_timeout)
            }
            _ => None,
        };
        self.settled_at.into_iter().chain(overdue).min()
    }

    /// Takes in how late it is. True where it has become known that a holder does not yield.
    pub fn tick(&mut self, now: Instant) -> bool {
        if self.settled_at.is_some_and(|at| at <= now) {
            self.apply(Event::Settled);
        }
        let Device::Trainer { yielding: true, .. } = self.machine.device() else {
            return false;
        };
        let timeout = self.options.yield_timeout;
        if self.trouble.is_some() || now.duration_since(self.since) < timeout {
            return false;
        }
        let hung = Arc::new(Error::HolderHung {
            holder: self.holder().unwrap_or_default().to_owned(),
            seconds: timeout.as_secs(),
        });
        self.trouble = Some(hung.clone());
        // They may go on waiting, but not without knowing for what.
        for stream in self.machine.waiting().collect::<Vec<_>>() {
            if let Some(stream) = self.streams.remove(&stream) {
                let hung = Error::Production(hung.clone());
                tell(&stream.messages, Err(hung.into()));
            }
            self.apply(Event::Closed { stream });
        }
        true
    }

    /// Tells every trainer that the server stops.
    pub fn close(&mut self) {
        for (_, stream) in self.streams.drain() {
            tell(&stream.messages, Err(Error::ShuttingDown.into()));
        }
    }

    fn apply(&mut self, event: Event) {
        let (before, epoch) = (self.machine.device(), self.machine.epoch());
        let actions = self.machine.handle(event);
        let now = Instant::now();
        if epoch != self.machine.epoch() {
            // Before anybody is told, so that whoever was told can come back.
            self.forget_secret();
        }
        if before != self.machine.device() {
            self.since = now;
            self.trouble = None;
            self.report(before);
        }
        self.settled_at = match (self.machine.is_settling(), self.settled_at) {
            (false, _) => None,
            (true, None) => Some(now + self.options.settle),
            (true, at) => at,
        };
        for action in actions {
            self.execute(action);
        }
    }

    /// From here on no grant before this is known. Where a trainer has the device, the new secret is its own.
    fn forget_secret(&mut self) {
        self.secret = Secret::random();
        self.record.write(self.machine.epoch(), &self.secret);
    }

    fn execute(&mut self, action: Action) {
        use hold_device_response::Event::{Granted as IsGranted, Yield as DoYield};
        let message = |event| Ok(HoldDeviceResponse { event: Some(event) });
        let (stream, message) = match action {
            Action::Grant { stream, epoch } => {
                let secret = self.secret.to_bytes();
                (stream, message(IsGranted(Granted { epoch, secret })))
            }
            Action::Yield { stream } => (stream, message(DoYield(Yield {}))),
            Action::Refuse { stream } | Action::Replace { stream } => {
                (stream, Err(Error::StaleEpoch.into()))
            }
        };
        let is_last = message.is_err();
        if let Some(stream) = self.streams.get(&stream) {
            tell(&stream.messages, message);
        }
        if is_last {
            self.streams.remove(&stream);
        }
    }

    /// Says who has the device, for people and for whoever checks that there is never more than one.
    fn report(&self, before: Device) {
        for state in said(before, self.machine.device()) {
            (self.report)(state, self.holder(), self.machine.epoch());
        }
    }
}

/// What is said of a change.
fn said(before: Device, now: Device) -> &'static [&'static str] {
    let had_it = |epoch| matches!(before, Device::Trainer { epoch: of, .. } if of == epoch);
    match (before, now) {
        (
            _,
            Device::Trainer {
                yielding, epoch, ..
            },
        ) => match (had_it(epoch), yielding) {
            // It is asked for the device as soon as it has it.
            (false, true) => &["granted", "yielding"],
            (true, true) => &["yielding"],
            (_, false) => &["granted"],
        },
        (Device::AwaitingRoom, Device::Loading) => &["loading"],
        (Device::Loading, Device::Teacher { .. }) => &["loaded"],
        (Device::Teacher { .. }, Device::Freeing) => &["leaving"],
        (Device::Freeing | Device::Trainer { .. }, Device::Nobody) => &["free"],
        _ => &[],
    }
}

/// The channel has room for all that a stream is ever told; one that is closed belongs to a trainer that is gone.
fn tell(messages: &Messages, message: std::result::Result<HoldDeviceResponse, Status>) {
    if let Err(error) = messages.try_send(message) {
        tracing::debug!("a trainer was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The grant went unsaid, and the teacher seemed to be there beside the trainer.
    #[test]
    fn a_trainer_that_is_asked_back_as_soon_as_it_has_the_device_was_granted_it() {
        let trainer = |epoch, yielding| Device::Trainer {
            stream: 1,
            epoch,
            yielding,
        };
        assert_eq!(
            said(Device::Freeing, trainer(3, true)),
            ["granted", "yielding"]
        );
        assert_eq!(
            said(trainer(2, true), trainer(3, true)),
            ["granted", "yielding"]
        );
        assert_eq!(said(trainer(3, false), trainer(3, true)), ["yielding"]);
        assert_eq!(said(Device::Nobody, trainer(3, false)), ["granted"]);
        assert_eq!(said(trainer(3, true), Device::Nobody), ["free"]);
    }
}
