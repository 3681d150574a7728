//! The outbox beside a model of it in memory, and whatever may lie in its folder.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;
use vggd::outbox::Status;

use super::*;

/// What happens to an outbox.
#[derive(Clone, Debug)]
enum Step {
    Append {
        failure: bool,
        length: usize,
    },
    /// Acknowledges some of what was delivered.
    Acknowledge(prop::sample::Index),
    Next,
    Flush,
    Reopen,
    /// Closes it, cuts off its newest segment and opens it.
    Cut(prop::sample::Index),
    /// Closes it, changes a byte of a file and opens it.
    Flip(prop::sample::Index, prop::sample::Index),
    NoCursor,
}

fn steps(damage: bool) -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![8 => 0..900_usize, 1 => 3000..9000_usize];
    let append =
        (any::<bool>(), length).prop_map(|(failure, length)| Step::Append { failure, length });
    let index = any::<prop::sample::Index>;
    let harm = u32::from(damage);
    let step = prop_oneof![
        24 => append,
        4 => index().prop_map(Step::Acknowledge),
        6 => Just(Step::Next),
        1 => Just(Step::Flush),
        2 => Just(Step::Reopen),
        harm => index().prop_map(Step::Cut),
        2 * harm => (index(), index()).prop_map(|(file, at)| Step::Flip(file, at)),
        harm => Just(Step::NoCursor),
    ];
    prop::collection::vec(step, 1..160)
}

/// What is known of a record in memory alone.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    kind: Kind,
    sequence: u64,
    id: String,
    payload: Vec<u8>,
}

/// An outbox, and beside it what was done with it.
struct Model {
    folder: TempDir,
    outbox: Option<Outbox>,
    max_bytes: u64,
    /// Appended, and neither damaged nor dropped nor acknowledged.
    known: BTreeMap<u64, Known>,
    /// The last to be appended of each number.
    ever: BTreeMap<u64, Known>,
    appended: u64,
    acknowledged: u64,
    read: u64,
    last: u64,
    sequences: [u64; 2],
    dropped: u64,
    damaged: bool,
    /// Whether segments were damaged since the last append: only the cursor may know numbers then.
    bare: bool,
}

impl Model {
    fn new(max_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Some(open(folder.path(), max_bytes));
        Self {
            folder,
            outbox,
            max_bytes,
            known: BTreeMap::new(),
            ever: BTreeMap::new(),
            appended: 0,
            acknowledged: 0,
            read: 0,
            last: 0,
            sequences: [0; 2],
            dropped: 0,
            damaged: false,
            bare: false,
        }
    }

    fn outbox(&self) -> &Outbox {
        self.outbox.as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { failure, length } => self.append(*failure, *length),
            Step::Acknowledge(index) => {
                if self.read > self.acknowledged {
                    let count = (self.read - self.acknowledged) as usize;
                    self.acknowledged += index.index(count) as u64 + 1;
                    self.outbox().acknowledge(self.acknowledged);
                }
            }
            Step::Next => {
                let from = self.read.max(self.acknowledged);
                let record = self.outbox().next(from);
                let expected = self.known.range(from + 1..).next();
                assert_eq!(record.as_ref().map(|r| r.number), expected.map(|(number, _)| *number));
                if let Some(record) = record {
                    self.read = record.number;
                    self.compare(&record);
                }
            }
            Step::Flush => {
                self.outbox().flush();
                assert!(self.last == 0 || self.outbox().settled(self.last));
            }
            Step::Reopen => self.reopen(&[], false),
            Step::Cut(index) => {
                self.outbox = None;
                if let Some(newest) = segments(self.folder.path()).pop() {
                    let length = fs::metadata(&newest).unwrap().len();
                    let at = index.index(length as usize + 1) as u64;
                    let harmed = self.harmed(&newest, |_, end| end > at);
                    cut(&newest, at);
                    self.damaged |= at < length;
                    self.reopen(&harmed, false);
                    self.bare = true;
                }
            }
            Step::Flip(file, at) => {
                self.outbox = None;
                let mut files = segments(self.folder.path());
                files.push(cursor(self.folder.path()));
                let file = file.get(&files);
                let on_cursor = *file == cursor(self.folder.path());
                let length = fs::metadata(file).unwrap().len() as usize;
                if length > 0 {
                    let at = at.index(length) as u64;
                    let harmed = self.harmed(file, |start, end| (start..end).contains(&at));
                    flip(file, at as i64);
                    self.damaged = true;
                    self.reopen(&harmed, on_cursor);
                    self.bare |= !on_cursor;
                }
            }
            Step::NoCursor => {
                self.outbox = None;
                fs::remove_file(cursor(self.folder.path())).unwrap();
                self.damaged = true;
                self.reopen(&[], true);
            }
        }
        if self.outbox.is_none() {
            self.reopen(&[], false);
        }
        let status = self.outbox().status();
        assert_eq!(status.trouble, None);
        assert!(status.bytes <= self.max_bytes, "{status:?}");
    }

    fn append(&mut self, failure: bool, length: usize) {
        self.appended += 1;
        self.bare = false;
        let kind = if failure { Kind::Failure } else { Kind::Prediction };
        let (id, payload) = (format!("id{}", self.appended), payload(self.appended, length));
        let mut sequence = 0;
        let number = self.outbox().append(kind, &id, |given| {
            sequence = given;
            payload.clone()
        });
        let before = &mut self.sequences[failure as usize];
        match self.damaged {
            false => assert_eq!((number, sequence), (self.last + 1, *before + 1)),
            true => assert!(number > self.last && sequence > *before),
        }
        (self.last, *before) = (number, sequence);
        assert_eq!(self.outbox().knows(&id), Some(kind));
        let known = Known { kind, sequence, id, payload };
        self.ever.insert(number, known.clone());
        self.known.insert(number, known);
        self.account();
    }

    /// Only the oldest are ever dropped, and as many as are counted.
    fn account(&mut self) {
        let first = self.outbox().next(0).expect("the newest stays").number;
        let gone: Vec<u64> = self.known.range(..first).map(|(number, _)| *number).collect();
        let dropped = gone.iter().filter(|number| **number > self.acknowledged).count() as u64;
        let counted = self.outbox().status().dropped;
        assert_eq!(self.dropped + dropped, counted);
        self.dropped += dropped;
        gone.iter().for_each(|number| drop(self.known.remove(number)));
    }

    fn compare(&self, record: &Record) {
        let Record { number, kind, sequence, id, payload, .. } = record.clone();
        assert_eq!(
            self.ever.get(&number),
            Some(&Known { kind, sequence, id, payload }),
            "{number}"
        );
    }

    /// Those of the known records that lie in a file where `hit` says.
    fn harmed(&self, file: &Path, hit: impl Fn(u64, u64) -> bool) -> Vec<u64> {
        let places = self.known.iter().filter_map(|(number, known)| {
            place(file, &known.id, &known.payload).map(|place| (number, place))
        });
        let harmed = places.filter(|(_, (start, end))| hit(*start, *end));
        harmed.map(|(number, _)| *number).collect()
    }

    /// Opens it anew; what is `harmed` must be gone, and all else be there.
    fn reopen(&mut self, harmed: &[u64], cursor_lost: bool) {
        self.outbox = None;
        self.outbox = Some(open(self.folder.path(), self.max_bytes));
        let status = self.outbox().status();
        for number in harmed {
            self.known.remove(number);
        }
        let found = pending(self.outbox());
        found.iter().for_each(|record| self.compare(record));
        assert!(found.is_sorted_by(|a, b| a.number < b.number));
        assert!(found.iter().all(|record| record.replayed));
        let numbers: BTreeSet<u64> = found.iter().map(|record| record.number).collect();
        for number in self.known.range(self.acknowledged + 1..).map(|(number, _)| number) {
            assert!(numbers.contains(number), "{number} is lost: {status:?}");
        }
        if harmed.iter().any(|number| *number > self.acknowledged) && !self.known.is_empty() {
            self.visible(harmed, &status);
        }
        if !self.damaged {
            assert_eq!((status.damaged, status.truncated), (0, 0));
            let all: BTreeSet<u64> =
                self.known.range(self.acknowledged + 1..).map(|(number, _)| *number).collect();
            assert_eq!(numbers, all);
        }
        if self.damaged {
            if cursor_lost && self.bare {
                self.ever.retain(|number, _| numbers.contains(number));
                self.acknowledged = 0;
            }
            // What was cut off without a trace may be given again, but nothing else.
            self.last = self.acknowledged.max(numbers.last().copied().unwrap_or(0));
            let given = |kind| {
                let given = self.ever.range(..=self.last).filter(|(_, known)| known.kind == kind);
                given.map(|(_, known)| known.sequence).max().unwrap_or(0)
            };
            self.sequences = [Kind::Prediction, Kind::Failure].map(given);
            self.dropped = status.dropped;
            // What was acknowledged may come again.
            let first = numbers.first().map_or(self.last, |first| first - 1);
            self.acknowledged = self.acknowledged.min(first);
            self.known = numbers.iter().map(|n| (*n, self.ever[n].clone())).collect();
        }
        self.read = self.acknowledged;
    }

    /// Records that are lost from among others are counted.
    fn visible(&self, harmed: &[u64], status: &Status) {
        let newest = self.known.keys().next_back().copied().unwrap_or(0);
        let among =
            harmed.iter().filter(|n| **n > self.acknowledged && **n < newest).count() as u64;
        assert!(status.damaged >= among, "{harmed:?}: {status:?}");
    }
}

/// Half as many cases as usual, or as PROPTEST_CASES says.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases / 2, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn it_is_a_queue(steps in steps(false)) {
        let mut model = Model::new(SMALL);
        steps.iter().for_each(|step| model.step(step));
    }

    #[test]
    fn it_is_a_queue_but_for_what_is_damaged(steps in steps(true)) {
        let mut model = Model::new(SMALL);
        steps.iter().for_each(|step| model.step(step));
    }

    #[test]
    fn whatever_lies_in_the_folder(files in prop::collection::vec(scraps(), 0..5), tail in scraps()) {
        let folder = tempfile::tempdir().unwrap();
        let first = |index: usize| [1, 2, 40, 1 << 61, u64::MAX][index];
        for (index, file) in files.iter().enumerate() {
            fs::write(folder.path().join(format!("{:020}.seg", first(index))), file).unwrap();
        }
        fs::write(cursor(folder.path()), tail).unwrap();
        let outbox = open(folder.path(), SMALL);
        let before = numbers(&outbox);
        let number = append(&outbox, 7);
        prop_assert!(before.iter().all(|other| *other < number));
        outbox.acknowledge(number - 1);
        prop_assert_eq!(numbers(&outbox), [number]);
        drop(outbox);
        prop_assert_eq!(&pending(&open(folder.path(), SMALL))[0].payload, &payload(7, LENGTH));
    }
}

/// Bytes of any kind, among them whole marks and records and parts of them.
fn scraps() -> impl Strategy<Value = Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path(), LARGE);
    append_all(&outbox, 1..=40);
    outbox.acknowledge(20);
    let segment = fs::read(&segments(folder.path())[0]).unwrap();
    let cursor = fs::read(cursor(folder.path())).unwrap();
    let part = move |bytes: Vec<u8>| {
        any::<(prop::sample::Index, prop::sample::Index)>().prop_map(move |(a, b)| {
            let (a, b) = (a.index(bytes.len() + 1), b.index(bytes.len() + 1));
            bytes[a.min(b)..a.max(b)].to_vec()
        })
    };
    let scrap = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        (any::<u8>(), 0..5000_usize).prop_map(|(byte, length)| vec![byte; length]),
        Just(b"\xffrec".to_vec()),
        Just(b"vggd-ob1".to_vec()),
        part(segment.clone()),
        part(cursor.clone()),
        Just(cursor),
        Just(segment),
    ];
    prop::collection::vec(scrap, 0..8).prop_map(|scraps| scraps.concat())
}
