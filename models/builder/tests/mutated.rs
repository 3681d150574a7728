//! Damaged files are read or refused, but never crash the reader.

use std::fs;
use std::path::Path;

use vggd_models::network::Network;
use vggd_models::random::Random;
use vggd_models::source::Source;

/// How many damaged copies there are of each file.
const COPIES: u64 = 400;

/// Bytes that mean much in one format or another.
const TELLING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'(', b'u', b't', b'R', b'.', b'\n', b'J'];

/// Changes a few bytes, removes or repeats a stretch, or cuts the file off.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    // What has a structure is at the beginning or at the end.
    let near = |random: &mut Random, length: usize| {
        let at = (random.uniform().powi(3) * length as f32) as usize;
        if random.uniform() < 0.5 { at.min(length - 1) } else { length - 1 - at.min(length - 1) }
    };
    for _ in 0..1 + (8.0 * random.uniform()) as usize {
        let at = near(random, bytes.len());
        bytes[at] = match (4.0 * random.uniform()) as u32 {
            0 => (256.0 * random.uniform()) as u8,
            1 => bytes[at].wrapping_add(1),
            2 => bytes[at] ^ 1 << (8.0 * random.uniform()) as u32,
            _ => TELLING[(TELLING.len() as f32 * random.uniform()) as usize],
        };
    }
    let at = near(random, bytes.len());
    let end = (at + (64.0 * random.uniform()) as usize).min(bytes.len());
    match (8.0 * random.uniform()) as u32 {
        0 => drop(bytes.drain(at..end)),
        1 => {
            let stretch = bytes[at..end].to_vec();
            bytes.splice(at..at, stretch);
        }
        2 => bytes.truncate(at),
        _ => {}
    }
}

#[test]
fn damaged_files_are_no_more_than_errors() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let mut read = 0;
    for fixture in fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()) {
        let content = fs::read(&fixture).unwrap();
        for seed in 0..COPIES {
            let mut bytes = content.clone();
            mutate(&mut bytes, &mut Random::new(seed));
            let path = folder.path().join("damaged");
            fs::write(&path, bytes).unwrap();
            let Ok(source) = Source::open(&path) else {
                continue;
            };
            for name in source.names() {
                let _whether_it_fits =
                    source.tensor(name).map(|tensor| tensor.map(|t| t.values().len()));
            }
            read += usize::from(Network::read(&source).is_ok());
        }
    }
    assert!(read > 0, "damage in numbers goes unnoticed");
}
