//! The cache on a real directory: sealing, damage, growth, and what is refused.

use distill_proto::{Frame, FrameContext};
use distill_text::{Token, Vocabulary};

use super::{matrices::VOCABULARY, *};
use crate::{
    frames::encode,
    plan::Plan,
    production::{Forward, Tokens},
    store::BlockStore,
    testing::{FakeTeacher, sequence},
};

/// Sequences with ids 100, 101, ...
pub(super) fn entries(first: u64, count: u64) -> Vec<distill_text::Sequence> {
    (first..first + count)
        .map(|id| sequence(id, 3 + id as usize % 3))
        .collect()
}

pub(super) fn header() -> v1::CacheHeader {
    v1::CacheHeader {
        info: Some(v1::GetServerInfoResponse {
            plan_fingerprint: Fingerprint::of(b"plan").to_hex(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn vocabulary() -> Vocabulary {
    let token = |bytes: &[u8]| Token {
        bytes: bytes.into(),
        special: false,
    };
    Vocabulary {
        tokens: vec![Some(token(b"a")), None, Some(token(b"bc"))],
        eos_id: Some(2),
    }
}

/// The first of a cache: two sequences a batch and two batches a shard.
pub(super) fn segment(sequences: &[distill_text::Sequence]) -> Segment {
    let entries = sequences.iter().map(Entry::of).collect();
    Segment::cut(None, Fingerprint::of(b"corpus"), entries, 2, (1, 13))
}

/// Two sequences a batch and two batches a shard.
pub(super) fn add(cache: &mut Cache, sequences: &[distill_text::Sequence]) {
    let entries = sequences.iter().map(Entry::of).collect();
    cache
        .add(Fingerprint::of(b"corpus"), entries, 2, (1, 13))
        .unwrap();
}

/// The bytes of the frame at `index`, as the packing thread makes them.
pub(super) fn frame(cache: &Cache, sequences: &[distill_text::Sequence], index: u64) -> Vec<u8> {
    let parts = [(2, sequences.len())];
    let entries = sequences.iter().map(Entry::of).collect();
    let texts = sequences.iter().cloned().map(Some).collect();
    let plan = Plan::of_parts(cache.plan(), cache.corpus(), entries, texts, &parts).unwrap();
    let tokens = Tokens::of(&sequences[index as usize]);
    let rows = FakeTeacher::default().rows(&[tokens]).unwrap().remove(0);
    let shards = cache.contents().shards;
    let shard = shards.iter().rev().find(|shard| shard.first_index <= index);
    encode(&plan, index, shard.unwrap().number, rows).unwrap()
}

struct Setup {
    directory: tempfile::TempDir,
    sequences: Vec<distill_text::Sequence>,
}

impl Setup {
    fn new() -> (Self, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let vocabulary = vocabulary();
        let matrices = Matrices {
            basis: None,
            projection: None,
            vocabulary: &vocabulary,
        };
        let sequences = entries(100, 10);
        let first = segment(&sequences);
        let cache = Cache::create(directory.path(), header(), &matrices, &first).unwrap();
        let setup = Self {
            directory,
            sequences,
        };
        (setup, cache)
    }

    fn open(&self, access: Access) -> Cache {
        Cache::open(self.directory.path(), access).unwrap().unwrap()
    }

    fn shard(&self, number: u32) -> PathBuf {
        self.directory.path().join(contents::sealed_name(number))
    }

    fn fill(&self, cache: &Cache, order: impl IntoIterator<Item = u64>) {
        let store = cache.store().unwrap();
        for index in order {
            store
                .put(index, &frame(cache, &self.sequences, index))
                .unwrap();
        }
        store.flush().unwrap();
    }
}

#[test]
fn shards_do_not_depend_on_the_order_in_which_frames_came() {
    let (setup, cache) = Setup::new();
    setup.fill(&cache, 0..10);
    let shards = cache.contents().shards;
    assert!(shards.len() > 2, "{shards:?}");
    let store = cache.store().unwrap();
    assert_eq!(store.sealed().frames, 10);
    for index in 0..10 {
        let block = store.get(index).unwrap().unwrap();
        let context = FrameContext {
            plan: cache.plan(),
            shard: block.shard,
            index,
        };
        let frame = Frame::decode(&block.frame, &context).unwrap();
        assert_eq!(frame.sequence_id, 100 + index);
    }
    assert_eq!(store.get(10).unwrap(), None);
    let (other, again) = Setup::new();
    other.fill(&again, [9, 3, 1, 8, 0, 5, 2, 4, 7, 6, 3]);
    for shard in shards.iter() {
        let bytes = |setup: &Setup| std::fs::read(setup.shard(shard.number)).unwrap();
        assert_eq!(bytes(&setup), bytes(&other));
    }
    let left = std::fs::read_dir(setup.directory.path().join(partial::PARTIAL)).unwrap();
    assert_eq!(left.count(), 0);
    drop((store, cache));

    let cache = setup.open(Access::Read);
    assert_eq!(cache.vocabulary().unwrap(), vocabulary());
    assert_eq!(cache.info().sequence_count, 10);
    assert!(cache.basis().unwrap().is_none() && cache.projection().unwrap().is_none());
}

#[test]
fn every_flipped_bit_of_a_shard_is_found_and_costs_one_frame_at_most() {
    let (setup, cache) = Setup::new();
    setup.fill(&cache, 0..10);
    let contents = cache.contents();
    let shard = contents.shards[1];
    let path = setup.shard(1);
    let bytes = std::fs::read(&path).unwrap();
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &flipped).unwrap();
        let damage = match contents.sealed_header(shard) {
            Err(error) => vec![error],
            Ok(header) => {
                let header = header.unwrap();
                let frames = (0..shard.count).map(|at| contents.sealed_frame(&header, at));
                frames.filter_map(Result::err).collect()
            }
        };
        assert_eq!(damage.len(), 1, "bit {bit}: {damage:?}");
        assert!(
            matches!(&damage[0], Error::Damaged { shard: 1, .. }),
            "{damage:?}"
        );
    }
    // A reader is told where; a writer drops the frame and keeps the others.
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    let last = shard.first_index + shard.count as u64 - 1;
    let store = setup.open(Access::Read).store().unwrap();
    let message = store.get(last).unwrap_err().to_string();
    assert!(
        message.contains("shard 1, byte") && message.contains("--repair"),
        "{message}"
    );
    assert!(store.get(last - 1).unwrap().is_some());
    let store = cache.store().unwrap();
    assert_eq!(store.get(last).unwrap(), None);
    assert!(!store.contains(last) && store.contains(last - 1));
    store
        .put(last, &frame(&cache, &setup.sequences, last))
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert!(setup.directory.path().join("damaged/0000001.0").exists());
}

#[test]
fn swapped_and_renamed_shards_are_found() {
    let (setup, cache) = Setup::new();
    setup.fill(&cache, 0..10);
    std::fs::rename(setup.shard(0), setup.shard(90)).unwrap();
    std::fs::rename(setup.shard(1), setup.shard(0)).unwrap();
    std::fs::rename(setup.shard(90), setup.shard(1)).unwrap();
    let message = match setup.open(Access::Read).store() {
        Err(error) => error.to_string(),
        Ok(_) => panic!("a swapped shard was taken"),
    };
    assert!(message.contains("shard 0"), "{message}");
    let store = cache.store().unwrap();
    assert!(!store.contains(0) && store.contains(9));
}

#[test]
fn a_torn_tail_is_cut_off_and_whole_frames_before_it_stay() {
    let (setup, cache) = Setup::new();
    setup.fill(&cache, 0..3);
    drop(cache);
    let path = setup.directory.path().join(partial::name(0));
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, [&whole[..cut], &[0; 40]].concat()).unwrap();
        let cache = setup.open(Access::Write);
        let store = cache.store().unwrap();
        let kept = (0..3).filter(|&index| store.contains(index)).count();
        assert!(kept < 3 && (0..kept as u64).all(|i| store.get(i).unwrap().is_some()));
        assert_eq!(
            std::fs::read(&path).unwrap(),
            whole[..std::fs::metadata(&path).unwrap().len() as usize]
        );
    }
    setup.fill(&setup.open(Access::Write), 0..10);
    assert_eq!(
        setup.open(Access::Read).store().unwrap().sealed().frames,
        10
    );
}

#[test]
fn documents_added_later_come_after_the_others() {
    let (mut setup, mut cache) = Setup::new();
    setup.fill(&cache, 0..10);
    let before: Vec<Vec<u8>> = (0..3)
        .map(|n| std::fs::read(setup.shard(n)).unwrap())
        .collect();
    let more = entries(300, 3);
    add(&mut cache, &more);
    setup.sequences.extend(more);
    drop(cache);
    let cache = setup.open(Access::Write);
    assert_eq!(cache.entries().len(), 13);
    assert_ne!(cache.corpus(), Fingerprint::of(b"corpus"));
    setup.fill(&cache, 10..13);
    let store = cache.store().unwrap();
    assert_eq!(store.sealed().frames, 13);
    assert_eq!(store.shard_of(10) as usize, 1 + store.shard_of(9) as usize);
    for (number, bytes) in before.iter().enumerate() {
        assert_eq!(&std::fs::read(setup.shard(number as u32)).unwrap(), bytes);
    }
}

#[test]
fn what_is_no_cache_and_what_is_damaged_is_refused_by_name() {
    let empty = tempfile::tempdir().unwrap();
    assert!(Cache::open(empty.path(), Access::Read).unwrap().is_none());
    assert!(
        Cache::open(&empty.path().join("new"), Access::Write)
            .unwrap()
            .is_none()
    );
    let (setup, cache) = Setup::new();
    let path = setup.directory.path();
    let second = Cache::open(path, Access::Write).err().unwrap().to_string();
    assert!(second.contains("is writing to it"), "{second}");
    drop(cache);
    for name in [HEADER, VOCABULARY, "segments/00000"] {
        let file = path.join(name);
        let bytes = std::fs::read(&file).unwrap();
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, flipped).unwrap();
            let opened = Cache::open(path, Access::Read);
            let found = opened.and_then(|cache| cache.unwrap().vocabulary().map(|_| ()));
            let message = found.unwrap_err().to_string();
            assert!(message.contains(name), "{name}, bit {bit}: {message}");
        }
        std::fs::write(&file, bytes).unwrap();
    }
    // The segment that a copied file was of is in its checksum.
    std::fs::copy(path.join("segments/00000"), path.join("segments/00001")).unwrap();
    assert!(Cache::open(path, Access::Read).is_err());
    let vocabulary = vocabulary();
    let matrices = Matrices {
        basis: None,
        projection: None,
        vocabulary: &vocabulary,
    };
    assert!(Cache::create(path, header(), &matrices, &segment(&setup.sequences)).is_err());
}

#[test]
fn a_stopped_verification_or_merge_passed_for_a_whole_one() {
    let (setup, cache) = Setup::new();
    setup.fill(&cache, 0..10);
    drop(cache);
    let cache = setup.open(Access::Read);
    let shards = cache.contents().shards.len() as u64;
    let after_one = || {
        let asked = std::cell::Cell::new(0);
        move || asked.replace(asked.get() + 1) == 1
    };
    let part = cache.verify(&after_one()).unwrap();
    assert_eq!((part.sealed, part.complete), (1, false));
    let whole = cache.verify(&|| false).unwrap();
    assert_eq!((whole.sealed, whole.complete), (shards, true));

    let out = tempfile::tempdir().unwrap();
    let inputs = [setup.directory.path().to_owned()];
    let part = merge(out.path(), &inputs, &after_one()).unwrap();
    assert_eq!((part.copied, part.complete), (1, false));
    let rest = merge(out.path(), &inputs, &|| false).unwrap();
    assert_eq!((rest.copied, rest.sealed), (shards - 1, shards));
    assert!(rest.complete);
}

#[test]
fn a_refused_merge_left_a_directory_that_named_itself() {
    let ((one, _), (other, mut cache)) = (Setup::new(), Setup::new());
    add(&mut cache, &entries(200, 4));
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("merged");
    let inputs = [&one, &other].map(|setup| setup.directory.path().to_owned());
    let message = merge(&out, &inputs, &|| false).unwrap_err().to_string();
    for name in inputs.iter().map(|input| input.to_str().unwrap()) {
        assert!(message.contains(name), "{message}");
    }
    assert!(!out.exists());
}

#[test]
fn a_merge_copied_a_damaged_vocabulary_of_any_length() {
    let (setup, cache) = Setup::new();
    drop(cache);
    let path = setup.directory.path().join(VOCABULARY);
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[0] ^= 1;
    for (bytes, length, expected) in [
        (flipped, whole.len() as u64, "checksum mismatch"),
        (whole, 9 << 30, "9663676416 bytes are not what was written"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.unwrap().set_len(length).unwrap();
        let out = tempfile::tempdir().unwrap();
        let inputs = [setup.directory.path().to_owned()];
        let message = merge(out.path(), &inputs, &|| false)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(VOCABULARY) && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_cache_that_lost_a_segment_was_a_smaller_one() {
    let (setup, mut cache) = Setup::new();
    add(&mut cache, &entries(200, 4));
    setup.fill(&cache, 0..10);
    let next = cache.segments()[0].end_shard();
    drop(cache);
    let segment = |number| setup.directory.path().join(segment_name(number));
    let refusal = || match Cache::open(setup.directory.path(), Access::Read) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("opened"),
    };
    // The first of two, which the second is behind.
    std::fs::rename(segment(0), setup.directory.path().join("kept")).unwrap();
    let error = refusal();
    assert!(
        error.contains("segments/00000: is missing") && error.contains("segments/00001"),
        "{error}"
    );
    // All of them: only shards say that there were any.
    std::fs::remove_file(segment(1)).unwrap();
    let error = refusal();
    assert!(error.contains("shards/0000000 is there"), "{error}");
    std::fs::rename(setup.directory.path().join("kept"), segment(0)).unwrap();
    assert_eq!(setup.open(Access::Read).segments().len(), 1);
    // The newest: a shard or a part of one is of none that is left.
    for directory in [contents::SHARDS, partial::PARTIAL] {
        let stray = setup
            .directory
            .path()
            .join(format!("{directory}/{next:07}"));
        std::fs::write(&stray, "").unwrap();
        let error = refusal();
        assert!(error.contains("segments/00001: is missing"), "{error}");
        std::fs::remove_file(stray).unwrap();
    }
}

#[test]
fn a_cache_without_its_shards_was_verified_as_a_complete_one() {
    let (setup, cache) = Setup::new();
    setup.fill(&cache, 0..10);
    drop(cache);
    let shards = setup.open(Access::Read).contents().shards.len() as u64;
    for number in 0..shards {
        std::fs::remove_file(setup.shard(number as u32)).unwrap();
        let verdict = setup.open(Access::Read).verify(&|| false).unwrap();
        let found = (verdict.missing, verdict.sealed, verdict.complete);
        assert_eq!(found, (number + 1, shards - number - 1, false));
        assert_eq!(verdict.damage, []);
    }
}

#[test]
fn a_shard_that_is_cut_or_removed_under_its_reader_is_damage_and_no_lack_of_room() {
    let cut = |path: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let harms: [&dyn Fn(&Path); 2] = [&cut, &remove];
    for harm in harms {
        let (setup, cache) = Setup::new();
        setup.fill(&cache, 0..10);
        let last = cache.contents().shards[1].first_index - 1;
        drop(cache);
        let reader = setup.open(Access::Read).store().unwrap();
        harm(&setup.shard(0));
        let error = reader.get(last).unwrap_err();
        assert!(matches!(error, Error::Damaged { shard: 0, .. }), "{error}");
        assert!(error.to_string().contains("cut or removed"), "{error}");
        assert!(reader.get(last + 1).unwrap().is_some());
    }
    // Who may write has it computed anew.
    for harm in harms {
        let (setup, cache) = Setup::new();
        setup.fill(&cache, 0..10);
        let writer = cache.store().unwrap();
        let last = cache.contents().shards[1].first_index - 1;
        harm(&setup.shard(0));
        assert!(writer.get(last).unwrap().is_none());
        assert!(!writer.contains(last));
    }
}
