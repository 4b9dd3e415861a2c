use std::time::Duration;

use distill_proto::{Frame, FrameContext};

use distill_proto::Fingerprint;

use super::*;
use crate::{
    store::{Spool, StoredBlock},
    testing::{FakeTeacher, plan},
};

fn start(plan: &Arc<Plan>, queue: usize, teacher: &FakeTeacher) -> Production {
    let store = Spool::create(None, plan.count()).unwrap();
    let teacher = Box::new(teacher.clone());
    Production::start(
        teacher,
        plan.clone(),
        Box::new(store),
        queue,
        Progress::hidden(),
    )
    .unwrap()
}

async fn next(reader: &mut Reader) -> Result<StoredBlock> {
    let ready = tokio::time::timeout(Duration::from_secs(10), reader.ready()).await;
    ready.expect("the teacher is stuck")?;
    Ok(reader.take().await?.expect("the end came early"))
}

async fn drain(reader: &mut Reader) -> Vec<StoredBlock> {
    let mut blocks = Vec::new();
    while reader.upcoming().is_some() {
        blocks.push(next(reader).await.unwrap());
    }
    blocks
}

/// Waits until `count` sequences are done, then a little longer: what is done too much shows up in that time.
async fn settles_at(production: &Production, count: u64) {
    for _ in 0..1000 {
        if production.sequences_done() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(production.sequences_done(), count);
}

#[tokio::test]
async fn a_second_reader_gets_the_same_bytes_without_the_teacher() {
    let (plan, teacher) = (plan(7, 2), FakeTeacher::default());
    let production = start(&plan, 4, &teacher);
    let mut reader = production.reader(Order::From(0)).unwrap();
    let first = drain(&mut reader).await;
    let digest = reader
        .digest()
        .await
        .unwrap()
        .expect("all frames are there");
    for (index, block) in first.iter().enumerate() {
        let context = FrameContext {
            plan: plan.fingerprint,
            shard: block.shard,
            index: index as u64,
        };
        let frame = Frame::decode(&block.frame, &context).unwrap();
        assert_eq!(frame.sequence_id, 100 + index as u64);
        assert_eq!(frame.rows.ids, frame.token_ids[1..]);
    }
    let bytes: Vec<u8> = first
        .iter()
        .flat_map(|block| block.frame.to_vec())
        .collect();
    assert_eq!(digest, Fingerprint::of(&bytes));
    assert_eq!(
        drain(&mut production.reader(Order::From(0)).unwrap()).await,
        first
    );
    assert_eq!(
        drain(&mut production.reader(Order::From(3)).unwrap()).await,
        first[3..]
    );
    assert_eq!(teacher.batches.load(Ordering::SeqCst), 4);
    assert_eq!(production.sequences_computed(), 7);
}

#[tokio::test]
async fn nothing_is_computed_for_nobody_and_little_ahead_of_a_slow_reader() {
    let (plan, teacher) = (plan(40, 2), FakeTeacher::default());
    let production = start(&plan, 6, &teacher);
    settles_at(&production, 0).await;
    let mut reader = production.reader(Order::From(0)).unwrap();
    settles_at(&production, 6).await;
    next(&mut reader).await.unwrap();
    settles_at(&production, 6).await;
    next(&mut reader).await.unwrap();
    settles_at(&production, 8).await;
    // A second reader at the start needs nothing new; one further on moves the window.
    let _slow = production.reader(Order::From(0)).unwrap();
    settles_at(&production, 8).await;
    drop(reader);
    settles_at(&production, 8).await;
}

#[tokio::test]
async fn a_batch_larger_than_the_queue_is_computed_when_needed() {
    let (plan, teacher) = (plan(12, 5), FakeTeacher::default());
    let production = start(&plan, 1, &teacher);
    let mut reader = production.reader(Order::From(0)).unwrap();
    settles_at(&production, 5).await;
    for _ in 0..5 {
        next(&mut reader).await.unwrap();
    }
    settles_at(&production, 10).await;
    assert_eq!(drain(&mut reader).await.len(), 7);
}

#[tokio::test]
async fn fetching_computes_only_the_batches_asked_for() {
    let (plan, teacher) = (plan(20, 2), FakeTeacher::default());
    let production = start(&plan, 8, &teacher);
    let order = Order::List(vec![15, 2, 15, 3].into());
    let blocks = drain(&mut production.reader(order).unwrap()).await;
    assert_eq!(
        blocks.iter().map(|block| block.index).collect::<Vec<_>>(),
        [15, 2, 15, 3]
    );
    assert_eq!(blocks[0], blocks[2]);
    assert_eq!(teacher.batches.load(Ordering::SeqCst), 2);
    let reader = production.reader(Order::From(20)).unwrap();
    assert_eq!(reader.upcoming(), None);
    assert_eq!(
        reader.digest().await.unwrap(),
        None,
        "no digest over what was never computed"
    );
}

#[tokio::test]
async fn a_failing_batch_fails_its_readers_only() {
    let (plan, teacher) = (plan(6, 1), FakeTeacher::default());
    teacher.fails_on.store(102, Ordering::SeqCst);
    let production = start(&plan, 6, &teacher);
    let mut reader = production.reader(Order::From(0)).unwrap();
    next(&mut reader).await.unwrap();
    next(&mut reader).await.unwrap();
    let error = next(&mut reader).await.unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
    assert_eq!(
        drain(&mut production.reader(Order::From(3)).unwrap())
            .await
            .len(),
        3
    );
    let before = teacher.batches.load(Ordering::SeqCst);
    assert!(
        next(&mut production.reader(Order::From(2)).unwrap())
            .await
            .is_err()
    );
    assert_eq!(
        teacher.batches.load(Ordering::SeqCst),
        before,
        "NaN is not tried again"
    );
}

/// A store whose disk is full until told otherwise.
struct FullDisk {
    spool: Spool,
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl BlockStore for FullDisk {
    fn contains(&self, index: u64) -> bool {
        self.spool.contains(index)
    }
    fn get(&self, index: u64) -> Result<Option<StoredBlock>> {
        self.spool.get(index)
    }
    fn shard_of(&self, index: u64) -> u32 {
        self.spool.shard_of(index)
    }
    fn put(&self, index: u64, frame: &[u8]) -> Result<()> {
        if self.full.load(Ordering::SeqCst) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::io("write", std::path::Path::new("/spool"))(full));
        }
        self.spool.put(index, frame)
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_tried_again_when_there_is_room() {
    let plan = plan(2, 1);
    let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let store = FullDisk {
        spool: Spool::create(None, 2).unwrap(),
        full: full.clone(),
    };
    let teacher = Box::new(FakeTeacher::default());
    let production =
        Production::start(teacher, plan, Box::new(store), 2, Progress::hidden()).unwrap();
    let error = next(&mut production.reader(Order::From(0)).unwrap())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("free some space"), "{error}");
    full.store(false, Ordering::SeqCst);
    assert_eq!(
        drain(&mut production.reader(Order::From(0)).unwrap())
            .await
            .len(),
        2
    );
}

#[tokio::test]
async fn scoring_goes_beside_the_plan_in_its_batches() {
    let (plan, teacher) = (plan(4, 2), FakeTeacher::default());
    let production = start(&plan, 2, &teacher);
    let tokens = |n: u32| OwnedTokens {
        token_ids: (0..n).collect(),
        target_mask: (0..n).map(|t| t > 0).collect(),
    };
    let rows = production
        .score(1, vec![tokens(3), tokens(5), tokens(2)])
        .await
        .unwrap();
    assert_eq!(
        rows.iter().map(|rows| rows.rows).collect::<Vec<_>>(),
        [2, 4, 1]
    );
    assert_eq!(rows[1].ids, [1, 2, 3, 4]);
    assert_eq!(teacher.batches.load(Ordering::SeqCst), 2);
    assert_eq!(production.sequences_done(), 0);
}

#[tokio::test]
async fn closing_tells_readers_and_ends_the_threads() {
    let (plan, teacher) = (plan(3, 1), FakeTeacher::default());
    teacher.fails_on.store(0, Ordering::SeqCst);
    let production = start(&plan, 1, &teacher);
    let mut reader = production.reader(Order::From(0)).unwrap();
    next(&mut reader).await.unwrap();
    production.close();
    assert!(matches!(reader.ready().await, Err(Error::ShuttingDown)));
    assert!(matches!(
        production.reader(Order::From(0)),
        Err(Error::ShuttingDown)
    ));
    assert!(matches!(
        production.score(1, vec![]).await,
        Err(Error::ShuttingDown)
    ));
    production.join();
}

/// A teacher that computes a batch when it is told to, and notes for whom: the plan, or the client that its tokens name.
struct Stepped {
    teacher: FakeTeacher,
    steps: std::sync::mpsc::Receiver<()>,
    served: Arc<Mutex<Vec<u32>>>,
}

/// In `Stepped::served`, for the plan.
const PLAN: u32 = 0;

impl Forward for Stepped {
    fn rows(&self, batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
        self.steps.recv().expect("the test goes on");
        let first = batch.first().expect("no batch is empty");
        let whom = if first.id >= 100 {
            PLAN
        } else {
            first.token_ids[0]
        };
        self.served.lock().unwrap().push(whom);
        self.teacher.rows(batch)
    }
}

/// Sequences of a client, in batches of one.
fn brought(client: u32, count: usize) -> Vec<OwnedTokens> {
    let one = OwnedTokens {
        token_ids: vec![client, 1, 2],
        target_mask: vec![false, true, true],
    };
    vec![one; count]
}

#[tokio::test]
async fn a_flood_of_scores_starves_neither_another_client_nor_the_plan() {
    let plan = plan(20, 1);
    let (step, steps) = std::sync::mpsc::channel();
    let served = Arc::new(Mutex::default());
    let teacher = Box::new(Stepped {
        teacher: FakeTeacher::default(),
        steps,
        served: served.clone(),
    });
    let store = Box::new(Spool::create(None, 20).unwrap());
    let production = Production::start(teacher, plan, store, 20, Progress::hidden()).unwrap();
    let production = Arc::new(production);
    let ask = |client: u32, count| {
        let production = production.clone();
        tokio::spawn(async move {
            production
                .score(client.into(), brought(client, count))
                .await
        })
    };
    // One client is all over the place before anybody else comes.
    let flood: Vec<_> = (0..10).map(|_| ask(1, 5)).collect();
    while production.shared.state().scores.len() < 9 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (second, third) = (ask(2, 2), ask(3, 1));
    let mut reader = production.reader(Order::From(0)).unwrap();
    while production.shared.state().scores.len() < 11 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // More than there is to do.
    for _ in 0..100 {
        step.send(()).unwrap();
    }
    assert_eq!(second.await.unwrap().unwrap().len(), 2);
    assert_eq!(third.await.unwrap().unwrap().len(), 1);
    for _ in 0..10 {
        next(&mut reader).await.unwrap();
    }
    let served = served.lock().unwrap().clone();
    let of = |whom| served.iter().position(|one| *one == whom).expect("served");
    assert!(of(PLAN) <= 2 && of(2) <= 6 && of(3) <= 6, "{served:?}");
    for (at, pair) in served[1..20].windows(2).enumerate() {
        assert!(
            pair.contains(&PLAN),
            "two scores in a row at {at}: {served:?}"
        );
    }
    let second: Vec<usize> = (0..served.len()).filter(|at| served[*at] == 2).collect();
    assert!(second[1] - second[0] <= 6, "{served:?}");
    for one in flood {
        one.abort();
    }
}

#[test]
fn scores_go_from_client_to_client_and_a_client_s_own_in_their_order() {
    let mut scores = Scores::default();
    let mut answers = Vec::new();
    for client in [1, 1, 1, 2, 3, 2] {
        let (job, answer) = ScoreJob::new(client, scores.next_number(), brought(1, 1));
        answers.push(answer);
        scores.add(job);
    }
    let mut order = Vec::new();
    // The first job takes two batches.
    let first = scores.pop_before(u64::MAX).unwrap();
    assert_eq!((first.client, first.number), (1, 0));
    scores.put_back(first);
    while let Some(job) = scores.pop_before(u64::MAX) {
        order.push((job.client, job.number));
    }
    assert_eq!(order, [(2, 3), (3, 4), (1, 0), (2, 5), (1, 1), (1, 2)]);
    // Those of a turn only, and who is gone is forgotten.
    let (job, answer) = ScoreJob::new(4, scores.next_number(), brought(1, 1));
    scores.add(job);
    assert!(scores.pop_before(6).is_none() && scores.len() == 1);
    drop(answer);
    scores.forget_abandoned();
    assert!(scores.is_empty());
}
