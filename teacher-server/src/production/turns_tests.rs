use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use distill_model::DeviceMemory;
use distill_proto::{
    Rows,
    v1::{Granted, HoldDeviceResponse, hold_device_response::Event},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::*;
use crate::{
    lease::{Grant, LeaseOptions, Record},
    plan::Plan,
    production::{Order, OwnedTokens, Production, Reader, Tokens},
    progress::Progress,
    store::Spool,
    testing::{FakeTeacher, plan},
};

/// A device that notes who is on it, and fails the test where two are.
#[derive(Default)]
struct Card {
    teacher: AtomicBool,
    trainer: AtomicBool,
    free_bytes: AtomicU64,
    loads: AtomicUsize,
    load_fails: AtomicBool,
}

impl Card {
    fn alone(&self) {
        let both = self.teacher.load(Ordering::SeqCst) && self.trainer.load(Ordering::SeqCst);
        assert!(!both, "two have the device");
    }
}

/// The fake teacher, for as long as it is on the card.
struct OnCard(FakeTeacher, Arc<Card>);

impl Forward for OnCard {
    fn rows(&self, batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
        self.1.alone();
        self.0.rows(batch)
    }
}

impl Drop for OnCard {
    fn drop(&mut self) {
        self.1.teacher.store(false, Ordering::SeqCst);
    }
}

struct Source(FakeTeacher, Arc<Card>);

impl Reload for Source {
    fn device_bytes(&self) -> u64 {
        3 << 30
    }

    fn load(&self) -> Result<Box<dyn Forward>> {
        self.1.loads.fetch_add(1, Ordering::SeqCst);
        if self.1.load_fails.load(Ordering::SeqCst) {
            return Err(Error::Mismatch("the weights are gone".into()));
        }
        self.1.teacher.store(true, Ordering::SeqCst);
        self.1.alone();
        Ok(Box::new(OnCard(self.0.clone(), self.1.clone())))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

struct CardMemory(Arc<Card>);

impl FreeMemory for CardMemory {
    fn look(&self) -> Result<Option<DeviceMemory>> {
        Ok(Some(DeviceMemory {
            free_bytes: self.0.free_bytes.load(Ordering::SeqCst),
            total_bytes: 24 << 30,
        }))
    }
}

/// Production over a plan, with its card and how much the teacher has done.
struct Bench {
    production: Production,
    card: Arc<Card>,
    teacher: FakeTeacher,
}

const QUICK: LeaseOptions = LeaseOptions {
    window: 6,
    yield_timeout: Duration::from_millis(80),
    settle: Duration::from_millis(60),
    room_patience: Duration::from_millis(50),
};

fn bench(plan: &Arc<Plan>, options: LeaseOptions) -> Bench {
    bench_with(plan, options, Record::none())
}

fn bench_with(plan: &Arc<Plan>, options: LeaseOptions, record: Record) -> Bench {
    let card = Arc::new(Card::default());
    card.free_bytes.store(24 << 30, Ordering::SeqCst);
    let teacher = FakeTeacher::default();
    let swap = Swap {
        source: Box::new(Source(teacher.clone(), card.clone())),
        memory: Box::new(CardMemory(card.clone())),
    };
    let store = Spool::create(None, plan.count()).unwrap();
    let lease = Lease::new(options, Box::new(|_, _, _| {}), record);
    let production = Production::start_swapping(
        swap,
        lease,
        plan.clone(),
        Box::new(store),
        Progress::hidden(),
    );
    Bench {
        production: production.unwrap(),
        card,
        teacher,
    }
}

/// A trainer's end of its stream.
struct Trainer {
    stream: u64,
    messages: mpsc::Receiver<std::result::Result<HoldDeviceResponse, Status>>,
    card: Arc<Card>,
}

impl Bench {
    fn ask(&self, name: &str) -> Trainer {
        self.come_back(name, None).unwrap()
    }

    fn come_back(&self, name: &str, held: Option<Grant<'_>>) -> Result<Trainer> {
        let (sender, messages) = mpsc::channel(4);
        Ok(Trainer {
            stream: self.production.hold(name, held, sender)?,
            messages,
            card: self.card.clone(),
        })
    }

    fn reader(&self, first: u64) -> Reader {
        self.production.reader(Order::From(first)).unwrap()
    }

    /// Frees the card, says so, and closes.
    fn release(&self, trainer: &Trainer, granted: &Granted) {
        self.card.trainer.store(false, Ordering::SeqCst);
        self.production.release(grant(granted)).unwrap();
        self.production.hold_ended(trainer.stream);
    }
}

/// What a trainer names of what it was told.
fn grant(granted: &Granted) -> Grant<'_> {
    Grant {
        epoch: granted.epoch,
        secret: &granted.secret,
    }
}

impl Trainer {
    async fn next(&mut self) -> std::result::Result<Event, Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.messages.recv()).await;
        let message = message.expect("nothing comes").expect("the stream ended");
        message.map(|message| message.event.unwrap())
    }

    async fn granted(&mut self) -> Granted {
        let Ok(Event::Granted(granted)) = self.next().await else {
            panic!("no grant");
        };
        self.card.trainer.store(true, Ordering::SeqCst);
        self.card.alone();
        granted
    }

    async fn is_asked_to_yield(&mut self) {
        assert!(matches!(self.next().await, Ok(Event::Yield(_))));
    }

    fn hears_nothing(&mut self) -> bool {
        self.messages.try_recv().is_err()
    }
}

async fn take(reader: &mut Reader, count: usize) {
    for _ in 0..count {
        ready(reader).await.unwrap();
        assert!(reader.take().await.unwrap().is_some());
    }
}

async fn ready(reader: &mut Reader) -> Result<()> {
    let ready = tokio::time::timeout(Duration::from_secs(10), reader.ready()).await;
    ready.expect("the teacher is stuck")
}

/// Long enough for anything that should not happen to show up.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(150)).await;
}

#[tokio::test]
async fn teacher_and_trainer_take_turns_of_a_window_each() {
    let plan = plan(20, 2);
    let patient = LeaseOptions {
        yield_timeout: Duration::from_secs(60),
        ..QUICK
    };
    let bench = bench(&plan, patient);
    let mut reader = bench.reader(0);
    let mut trainer = bench.ask("a");
    let granted = trainer.granted().await;
    // The first window was computed before; nothing of the teacher is left on the card.
    assert_eq!(bench.production.sequences_computed(), 6);
    assert!(!bench.card.teacher.load(Ordering::SeqCst));
    take(&mut reader, 5).await;
    a_while().await;
    assert!(trainer.hears_nothing(), "there is a frame left");
    take(&mut reader, 1).await;
    trainer.is_asked_to_yield().await;
    let mut second = bench.ask("b");
    a_while().await;
    assert!(second.hears_nothing());
    assert_eq!(bench.card.loads.load(Ordering::SeqCst), 1);
    bench.release(&trainer, &granted);
    // Who waits gets the device before more is computed, after one window for whoever needs it.
    let later = second.granted().await;
    assert!(later.epoch > granted.epoch);
    assert_eq!(bench.production.sequences_computed(), 12);
    take(&mut reader, 6).await;
    second.is_asked_to_yield().await;
    bench.release(&second, &later);
    take(&mut reader, 8).await;
    assert!(reader.digest().await.unwrap().is_some());
    assert_eq!(bench.card.loads.load(Ordering::SeqCst), 3);
    assert_eq!(bench.teacher.batches.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn a_holder_that_does_not_yield_is_named_and_keeps_the_device() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    let mut trainer = bench.ask("student 7\n\u{1b}\u{202e}");
    let granted = trainer.granted().await;
    let mut waiting = bench.ask("b");
    for _ in 0..2 {
        let error = ready(&mut bench.reader(0)).await.unwrap_err().to_string();
        assert!(error.contains("student 7 has the device"), "{error}");
        assert!(error.contains("--yield-timeout-s"), "{error}");
    }
    a_while().await;
    assert_eq!(bench.card.loads.load(Ordering::SeqCst), 0);
    // So does who waits for the device, and who asks for it now.
    let told = waiting.next().await.unwrap_err();
    assert!(told.message().contains("student 7"), "{told}");
    let (sender, _) = mpsc::channel(4);
    let refused = bench.production.hold("c", None, sender).unwrap_err();
    assert!(refused.to_string().contains("student 7"), "{refused}");
    trainer.is_asked_to_yield().await;
    bench.release(&trainer, &granted);
    take(&mut bench.reader(0), 4).await;
    bench.ask("c").granted().await;
}

#[tokio::test]
async fn a_device_without_room_is_told_with_the_numbers_and_used_when_there_is() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    bench.card.free_bytes.store(1 << 30, Ordering::SeqCst);
    let score = bench.production.score(
        1,
        vec![OwnedTokens {
            token_ids: vec![1, 2],
            target_mask: vec![false, true],
        }],
    );
    let mut reader = bench.reader(0);
    let (score, read) = tokio::join!(score, ready(&mut reader));
    for error in [score.unwrap_err(), read.unwrap_err()] {
        let error = error.to_string();
        for part in ["3.00 GiB", "1.00 GiB", "24.00 GiB", "--dtype"] {
            assert!(error.contains(part), "{error}");
        }
    }
    assert_eq!(bench.card.loads.load(Ordering::SeqCst), 0);
    drop(reader);
    // With nobody in need a trainer gets the device all the same.
    let mut trainer = bench.ask("a");
    let granted = trainer.granted().await;
    bench.release(&trainer, &granted);
    bench.card.free_bytes.store(3 << 30, Ordering::SeqCst);
    take(&mut bench.reader(0), 4).await;
}

#[tokio::test]
async fn a_teacher_that_cannot_be_loaded_is_told_and_tried_again_when_asked_anew() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    bench.card.load_fails.store(true, Ordering::SeqCst);
    let mut reader = bench.reader(0);
    let error = ready(&mut reader).await.unwrap_err().to_string();
    assert!(error.contains("the weights are gone"), "{error}");
    a_while().await;
    assert_eq!(
        bench.card.loads.load(Ordering::SeqCst),
        1,
        "not over and over"
    );
    bench.card.load_fails.store(false, Ordering::SeqCst);
    take(&mut bench.reader(0), 4).await;
}

#[tokio::test]
async fn a_reader_hears_that_there_is_no_teacher_also_where_a_trainer_has_the_device_by_then() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    bench.card.load_fails.store(true, Ordering::SeqCst);
    let mut reader = bench.reader(0);
    let mut trainer = bench.ask("a");
    trainer.granted().await;
    let error = ready(&mut reader).await.unwrap_err().to_string();
    assert!(error.contains("the weights are gone"), "{error}");
}

#[tokio::test]
async fn scoring_is_refused_while_a_trainer_holds_the_device_and_has_its_turn_before() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    let tokens = || {
        vec![OwnedTokens {
            token_ids: vec![1, 2, 3],
            target_mask: vec![false, true, true],
        }]
    };
    let mut trainer = bench.ask("a");
    let granted = trainer.granted().await;
    let error = bench.production.score(1, tokens()).await.unwrap_err();
    assert!(matches!(&error, Error::DeviceHeld { holder } if holder == "a"));
    a_while().await;
    assert!(trainer.hears_nothing(), "a refusal needs nothing");
    bench.release(&trainer, &granted);
    let rows = bench.production.score(1, tokens()).await.unwrap();
    assert_eq!(rows[0].ids, [2, 3]);
    let mut again = bench.ask("a");
    again.granted().await;
    assert!(!bench.card.teacher.load(Ordering::SeqCst));
}

#[tokio::test]
async fn who_loses_its_connection_can_come_back_for_a_while_and_then_another_is_next() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    let mut trainer = bench.ask("a");
    let granted = trainer.granted().await;
    let mut second = bench.ask("b");
    bench.production.hold_ended(trainer.stream);
    let mut back = bench.come_back("a", Some(grant(&granted))).unwrap();
    let kept = back.granted().await;
    a_while().await;
    assert!(second.hears_nothing());
    // This time it dies.
    bench.card.trainer.store(false, Ordering::SeqCst);
    bench.production.hold_ended(back.stream);
    second.granted().await;
    let late = bench.come_back("a", Some(grant(&kept))).err().unwrap();
    assert!(late.to_string().contains("ask anew"), "{late}");
    let stale = bench.production.release(grant(&kept)).unwrap_err();
    assert!(matches!(stale, Error::StaleEpoch));
}

#[tokio::test]
async fn closing_tells_those_who_hold_and_those_who_wait() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    let mut holder = bench.ask("a");
    holder.granted().await;
    let mut waiting = bench.ask("b");
    bench.production.close();
    for trainer in [&mut holder, &mut waiting] {
        let status = trainer.next().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    }
    bench.production.join();
}

#[tokio::test]
async fn nobody_releases_or_takes_over_what_another_holds() {
    let plan = plan(4, 1);
    let bench = bench(&plan, QUICK);
    let mut holder = bench.ask("a");
    let former = holder.granted().await;
    bench.release(&holder, &former);
    let replayed = bench.come_back("a", Some(grant(&former)));
    assert!(
        replayed.is_err(),
        "what was given back is over, though nobody had the device since"
    );
    let mut holder = bench.ask("a");
    let granted = holder.granted().await;
    let Granted { epoch, secret } = granted.clone();
    let mut flipped = secret.to_vec();
    flipped[15] ^= 1;
    let longer = [&secret[..], &[0]].concat();
    // Guesses of either half, replays of an earlier grant, and halves of two grants.
    for (epoch, secret) in [
        (epoch, &b""[..]),
        (epoch, &[0; 16]),
        (epoch, &flipped),
        (epoch, &longer),
        (epoch, &secret[..15]),
        (epoch, &former.secret),
        (epoch + 1, &secret),
        (epoch - 1, &secret),
        (former.epoch, &secret),
        (former.epoch, &former.secret),
        (0, &secret),
        (u64::MAX, &secret),
    ] {
        let guess = Grant { epoch, secret };
        let refused = bench.production.release(guess).unwrap_err();
        assert!(matches!(refused, Error::StaleEpoch), "{refused}");
        let refused = bench.come_back("b", Some(guess)).err().unwrap();
        assert!(matches!(refused, Error::StaleEpoch), "{refused}");
    }
    a_while().await;
    assert!(holder.hears_nothing(), "the holder has noticed nothing");
    // The holder itself does both.
    bench.production.hold_ended(holder.stream);
    let mut back = bench.come_back("a", Some(grant(&granted))).unwrap();
    let kept = back.granted().await;
    assert!(
        bench.production.release(grant(&granted)).is_err(),
        "its former grant is over"
    );
    bench.release(&back, &kept);
    bench.ask("b").granted().await;
}

#[tokio::test]
async fn a_restarted_server_knows_the_holder_of_before_by_its_secret() {
    let plan = plan(4, 1);
    let directory = tempfile::tempdir().unwrap();
    let record = || Record::at(directory.path().join("lease"));
    let before = bench_with(&plan, QUICK, record());
    let mut trainer = before.ask("a");
    let first = trainer.granted().await;
    before.release(&trainer, &first);
    let mut trainer = before.ask("a");
    let granted = trainer.granted().await;
    drop(before);
    // Twice, as the second server may go down before anybody has come back.
    drop(bench_with(&plan, QUICK, record()));
    let after = bench_with(&plan, QUICK, record());
    for stranger in [
        grant(&first),
        Grant {
            epoch: granted.epoch,
            secret: &[7; 16],
        },
        Grant {
            epoch: granted.epoch - 1,
            secret: &granted.secret,
        },
    ] {
        assert!(after.come_back("b", Some(stranger)).is_err());
    }
    let mut back = after.come_back("a", Some(grant(&granted))).unwrap();
    let kept = back.granted().await;
    assert!(kept.epoch > granted.epoch);
    after.release(&back, &kept);
    // A server whose record is gone knows nobody.
    let lost = bench(&plan, QUICK);
    assert!(lost.come_back("a", Some(grant(&kept))).is_err());
    lost.ask("a").granted().await;
}
