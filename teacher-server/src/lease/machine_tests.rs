use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const TRAINERS: usize = 4;

/// A trainer as the world knows it, the machine does not.
#[derive(Debug, Clone, Default)]
struct Trainer {
    stream: Option<u64>,
    /// The epoch under which it has memory on the device.
    memory: Option<u64>,
    yielding: bool,
}

/// Everything around the machine: who really has memory on the device.
struct World {
    machine: Machine,
    trainers: Vec<Trainer>,
    teacher_has_memory: bool,
    needed: bool,
    next_stream: u64,
    /// Streams that asked anew, in order, and were neither granted nor closed.
    asked: VecDeque<u64>,
    last_epoch: u64,
    grants: usize,
    turns: usize,
}

/// Something that may happen, to one of the trainers where it is about one.
#[derive(Debug, Clone, Copy)]
enum Step {
    Ask(usize),
    Release(usize),
    Die(usize),
    LoseConnection(usize),
    ComeBack(usize),
    ComeBackStale(usize, u64),
    Teacher { fails: bool },
    Needed(bool),
    Settle,
    RestartServer,
}

fn step() -> impl Strategy<Value = Step> {
    let trainer = 0..TRAINERS;
    prop_oneof![
        3 => trainer.clone().prop_map(Step::Ask),
        3 => trainer.clone().prop_map(Step::Release),
        1 => trainer.clone().prop_map(Step::Die),
        1 => trainer.clone().prop_map(Step::LoseConnection),
        2 => trainer.clone().prop_map(Step::ComeBack),
        1 => (trainer, 0..40u64).prop_map(|(trainer, age)| Step::ComeBackStale(trainer, age)),
        6 => prop::bool::weighted(0.1).prop_map(|fails| Step::Teacher { fails }),
        3 => prop::bool::ANY.prop_map(Step::Needed),
        2 => Just(Step::Settle),
        1 => Just(Step::RestartServer),
    ]
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(0, 1000),
            trainers: vec![Trainer::default(); TRAINERS],
            teacher_has_memory: false,
            needed: false,
            next_stream: 0,
            asked: VecDeque::new(),
            last_epoch: 1000,
            grants: 0,
            turns: 0,
        }
    }

    fn send(&mut self, event: Event) {
        if let Event::Needed(needed) = event {
            self.needed = needed;
        }
        for action in self.machine.handle(event) {
            match action {
                Action::Grant { stream, epoch } => self.granted(stream, epoch),
                Action::Yield { stream } => {
                    let trainer = self.of(stream).expect("yields come to open streams");
                    assert!(
                        trainer.memory.is_some(),
                        "a yield to one without the device"
                    );
                    assert!(!trainer.yielding, "a second yield for one grant");
                    trainer.yielding = true;
                    assert!(self.needed, "a yield for nothing");
                }
                // It frees what it has, as it is told to.
                Action::Refuse { stream } => {
                    let trainer = self.of(stream).expect("refused on its own stream");
                    *trainer = Trainer::default();
                }
                Action::Replace { stream } => {
                    assert!(self.of(stream).is_none(), "the old stream is nobody's now");
                }
            }
        }
    }

    fn granted(&mut self, stream: u64, epoch: u64) {
        assert!(epoch > self.last_epoch, "epochs strictly increase");
        self.last_epoch = epoch;
        self.grants += 1;
        let first = self.asked.front().copied();
        let trainer = self.of(stream).expect("grants go to open streams");
        if trainer.memory.is_none() {
            assert_eq!(first, Some(stream), "first come, first served");
            trainer.memory = Some(epoch);
            trainer.yielding = false;
            self.asked.pop_front();
        } else {
            trainer.memory = Some(epoch);
            trainer.yielding = false;
        }
    }

    fn of(&mut self, stream: u64) -> Option<&mut Trainer> {
        self.trainers
            .iter_mut()
            .find(|trainer| trainer.stream == Some(stream))
    }

    fn open(&mut self, trainer: usize) -> u64 {
        self.next_stream += 1;
        self.trainers[trainer].stream = Some(self.next_stream);
        self.next_stream
    }

    fn closed(&mut self, stream: Option<u64>) {
        if let Some(stream) = stream {
            self.asked.retain(|asked| *asked != stream);
            self.send(Event::Closed { stream });
        }
    }

    /// A trainer that has memory and no stream: alive, and about to come back.
    fn somebody_is_lost(&self) -> bool {
        let lost = |trainer: &Trainer| trainer.memory.is_some() && trainer.stream.is_none();
        self.trainers.iter().any(lost)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask(i) => {
                if self.trainers[i].stream.is_none() && self.trainers[i].memory.is_none() {
                    let stream = self.open(i);
                    self.asked.push_back(stream);
                    self.send(Event::Ask {
                        stream,
                        epoch_held: None,
                    });
                }
            }
            Step::Release(i) => {
                if let (Some(epoch), Some(stream)) =
                    (self.trainers[i].memory, self.trainers[i].stream)
                {
                    // Freed first, then said, then closed.
                    self.trainers[i].memory = None;
                    self.send(Event::Released { epoch });
                    self.trainers[i] = Trainer::default();
                    self.closed(Some(stream));
                }
            }
            Step::Die(i) => {
                let stream = self.trainers[i].stream;
                self.trainers[i] = Trainer::default();
                self.closed(stream);
            }
            Step::LoseConnection(i) => {
                let stream = self.trainers[i].stream.take();
                self.closed(stream);
            }
            Step::ComeBack(i) => {
                if let (Some(epoch), None) = (self.trainers[i].memory, self.trainers[i].stream) {
                    let stream = self.open(i);
                    self.send(Event::Ask {
                        stream,
                        epoch_held: Some(epoch),
                    });
                }
            }
            Step::ComeBackStale(i, age) => self.come_back_stale(i, age),
            Step::Teacher { fails } => self.teacher(fails),
            Step::Needed(needed) => self.send(Event::Needed(needed)),
            // The time to come back is longer than a living trainer takes.
            Step::Settle => {
                if !self.somebody_is_lost() {
                    self.send(Event::Settled);
                }
            }
            Step::RestartServer => {
                self.last_epoch += 1000;
                self.machine = Machine::new(self.machine.latest(), self.last_epoch);
                self.teacher_has_memory = false;
                self.asked.clear();
                for trainer in &mut self.trainers {
                    trainer.stream = None;
                    trainer.yielding = false;
                }
                self.send(Event::Needed(self.needed));
            }
        }
        self.check();
    }

    /// Somebody claims an epoch after which the device was used: it must not get the device.
    fn come_back_stale(&mut self, i: usize, age: u64) {
        // Before the latest one, or between it and what a restarted server begins with.
        let epoch = match self.machine.latest().checked_sub(1 + age) {
            Some(epoch) if age.is_multiple_of(2) => epoch,
            _ => self.machine.latest() + 1 + age,
        };
        if self.trainers[i].stream.is_some() || self.trainers[i].memory.is_some() {
            return;
        }
        let stream = self.open(i);
        let before = self.machine.device();
        let actions = self.machine.handle(Event::Ask {
            stream,
            epoch_held: Some(epoch),
        });
        assert_eq!(actions, [Action::Refuse { stream }], "stale epoch {epoch}");
        assert_eq!(self.machine.device(), before);
        self.trainers[i] = Trainer::default();
    }

    fn teacher(&mut self, fails: bool) {
        match self.machine.task() {
            // What the check of the device's memory is for.
            Some(Task::AwaitRoom) if self.trainers.iter().all(|one| one.memory.is_none()) => {
                self.send(Event::Room);
            }
            // Nobody needs it any more: they are told.
            Some(Task::Load) if fails => {
                self.needed = false;
                self.send(Event::LoadFailed);
            }
            Some(Task::Load) => {
                self.teacher_has_memory = true;
                self.last_epoch = self.last_epoch.max(self.machine.epoch());
                self.send(Event::Loaded);
            }
            Some(Task::Work) => {
                self.turns += 1;
                self.send(Event::TurnOver);
            }
            Some(Task::Free) => {
                self.teacher_has_memory = false;
                self.send(Event::Freed);
            }
            Some(Task::AwaitRoom) | None => {}
        }
    }

    fn check(&self) {
        let trainers = self.trainers.iter().filter(|one| one.memory.is_some());
        let holders = trainers.count() + usize::from(self.teacher_has_memory);
        assert!(holders <= 1, "{holders} have the device");
        assert!(self.machine.waiting().eq(self.asked.iter().copied()));
        if let (true, Device::Trainer { yielding, .. }) = (self.needed, self.machine.device()) {
            assert!(
                yielding,
                "the teacher is needed and nobody asked the holder"
            );
        }
    }

    /// Everybody does what they should: the lost come back, who has to yield does, the teacher works until it is done.
    fn everybody_behaves(&mut self) {
        for i in 0..TRAINERS {
            self.step(Step::ComeBack(i));
        }
        self.step(Step::Settle);
        self.step(Step::Teacher { fails: false });
        for i in 0..TRAINERS {
            if self.trainers[i].yielding {
                self.step(Step::Release(i));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn never_two_hold_first_come_is_first_served_and_nobody_waits_for_ever(
        steps in prop::collection::vec(step(), 0..120)
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        // The teacher gets its turn ...
        world.step(Step::Needed(true));
        let turns = world.turns;
        for _ in 0..12 {
            world.everybody_behaves();
        }
        prop_assert!(world.turns > turns, "the teacher starves: {:?}", world.machine);
        // ... and every trainer its own, though something is always needed.
        for _ in 0..12 * TRAINERS {
            world.everybody_behaves();
        }
        prop_assert!(world.asked.is_empty(), "a trainer starves: {:?}", world.machine);
        world.step(Step::Needed(false));
        for i in 0..TRAINERS {
            world.step(Step::Release(i));
            world.step(Step::Ask(i));
        }
        let grants = world.grants;
        for _ in 0..12 {
            world.everybody_behaves();
            for i in 0..TRAINERS {
                world.step(Step::Release(i));
            }
        }
        prop_assert!(world.grants >= grants + TRAINERS - 1, "{:?}", world.machine);
        prop_assert!(world.asked.is_empty());
    }
}

/// A machine that has settled, with the trainer on stream 1 holding the device.
fn held() -> Machine {
    let mut machine = Machine::new(0, 10);
    machine.handle(Event::Settled);
    let ask = Event::Ask {
        stream: 1,
        epoch_held: None,
    };
    let grant = Action::Grant {
        stream: 1,
        epoch: 11,
    };
    assert_eq!(machine.handle(ask), [grant]);
    machine
}

#[test]
fn the_teacher_comes_between_two_trainers_when_it_is_needed() {
    let mut machine = held();
    let ask = |stream| Event::Ask {
        stream,
        epoch_held: None,
    };
    assert_eq!(machine.handle(ask(2)), []);
    assert_eq!(
        machine.handle(Event::Needed(true)),
        [Action::Yield { stream: 1 }]
    );
    assert_eq!(machine.handle(Event::Released { epoch: 11 }), []);
    assert_eq!(machine.task(), Some(Task::AwaitRoom));
    for (event, task) in [
        (Event::Room, Some(Task::Load)),
        (Event::Loaded, Some(Task::Work)),
        (Event::TurnOver, Some(Task::Free)),
    ] {
        assert_eq!(machine.handle(event), []);
        assert_eq!(machine.task(), task);
    }
    // More is needed already; the trainer comes first all the same, and hears of it.
    let expected = [
        Action::Grant {
            stream: 2,
            epoch: 13,
        },
        Action::Yield { stream: 2 },
    ];
    assert_eq!(machine.handle(Event::Freed), expected);
}

#[test]
fn a_lost_holder_comes_back_while_the_device_settles_and_not_after_another_use() {
    let ask = |stream, epoch_held| Event::Ask { stream, epoch_held };
    let mut machine = held();
    machine.handle(ask(2, None));
    assert_eq!(machine.handle(Event::Closed { stream: 1 }), []);
    assert!(machine.is_settling() && machine.device() == Device::Nobody);
    let mut back = machine.clone();
    let grant = |stream, epoch| Action::Grant { stream, epoch };
    assert_eq!(back.handle(ask(3, Some(11))), [grant(3, 12)]);
    assert!(!back.is_settling());

    assert_eq!(machine.handle(Event::Settled), [grant(2, 12)]);
    assert_eq!(
        machine.handle(ask(3, Some(11))),
        [Action::Refuse { stream: 3 }]
    );
}

#[test]
fn a_holder_that_comes_back_before_its_old_stream_is_seen_to_be_dead_replaces_it() {
    let mut machine = held();
    let back = Event::Ask {
        stream: 2,
        epoch_held: Some(11),
    };
    let grant = Action::Grant {
        stream: 2,
        epoch: 12,
    };
    assert_eq!(machine.handle(back), [Action::Replace { stream: 1 }, grant]);
    assert_eq!(machine.handle(Event::Closed { stream: 1 }), []);
    assert!(matches!(
        machine.device(),
        Device::Trainer { stream: 2, .. }
    ));
}

#[test]
fn a_restarted_server_leaves_the_device_to_the_holder_of_before_and_to_no_other() {
    let start = || Machine::new(77, 500);
    let mut machine = start();
    machine.handle(Event::Needed(true));
    assert_eq!(
        machine.task(),
        None,
        "it does not load before it has settled"
    );
    let back = Event::Ask {
        stream: 1,
        epoch_held: Some(77),
    };
    let expected = [
        Action::Grant {
            stream: 1,
            epoch: 501,
        },
        Action::Yield { stream: 1 },
    ];
    assert_eq!(machine.handle(back), expected);
    // Where the memory check keeps it waiting, the holder of before may come later, too.
    let mut machine = start();
    machine.handle(Event::Needed(true));
    machine.handle(Event::Settled);
    assert_eq!(machine.task(), Some(Task::AwaitRoom));
    assert_eq!(machine.handle(back), expected);
    // From the moment it loads, nobody can.
    let mut machine = start();
    machine.handle(Event::Needed(true));
    machine.handle(Event::Settled);
    machine.handle(Event::Room);
    assert_eq!(machine.handle(back), [Action::Refuse { stream: 1 }]);
    // A guess is no epoch of the latest use, also where the server does not know one.
    for (former, guess) in [
        (77, 76),
        (77, 78),
        (77, 500),
        (0, 77),
        (0, 500),
        (0, u64::MAX),
    ] {
        let mut machine = Machine::new(former, 500);
        let ask = Event::Ask {
            stream: 1,
            epoch_held: Some(guess),
        };
        assert_eq!(machine.handle(ask), [Action::Refuse { stream: 1 }]);
        assert!(
            machine.is_settling(),
            "the holder of before can still come back"
        );
    }
}
