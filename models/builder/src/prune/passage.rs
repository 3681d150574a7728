//! Photos on their way through a network that is looked at layer by layer: what they are behind a
//! pooling is put down in a file and picked up from there for the layers after it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{PruneError, Site};
use crate::forward::{Convolution, Map, Take};
use crate::photos::Photos;
use crate::random::Random;
use crate::topology::BASELINE_SIDE;

/// The convolutions whose inputs are put down: the first, so that photos are decoded once, and
/// those behind a pooling, but for the earliest, whose inputs are large and soon computed again.
const STATIONS: [usize; 4] = [0, 4, 8, 12];

/// Photos on their way through one network.
pub(super) struct Passage<'a> {
    site: Site<'a>,
    /// All photos at the last station.
    stored: Option<Station>,
    /// Some at the next one.
    growing: Option<Station>,
}

struct Station {
    /// The convolution that reads the maps.
    layer: usize,
    /// Of scratch; it has no name.
    file: File,
    /// A map like those in the file.
    map: Map,
    /// How many there are.
    count: usize,
}

impl<'a> Passage<'a> {
    pub(super) fn new(site: &Site<'a>) -> Self {
        Self { site: *site, stored: None, growing: None }
    }

    /// A photo as the convolution behind `layers`, the first ones of the network, reads it. Cheap
    /// where all photos are asked for in their order, for more and more layers.
    pub(super) fn map(&mut self, photo: usize, layers: &[Convolution]) -> Result<Map, PruneError> {
        let before = self.stored.as_ref().map(|station| station.layer);
        let is_next = |at: usize| at <= layers.len() && before.is_none_or(|before| at > before);
        let next = STATIONS.into_iter().rfind(|&station| is_next(station));
        let stored = self.stored.as_mut().filter(|station| station.layer <= layers.len());
        let (mut at, mut map) = match stored {
            Some(station) => {
                (station.layer, station.read(photo).map_err(io_at(self.site.scratch))?)
            }
            None => (0, image(self.site.photos, photo)?),
        };
        loop {
            if Some(at) == next {
                self.put_down(at, photo, &map).map_err(io_at(self.site.scratch))?;
            }
            let Some(layer) = layers.get(at) else { return Ok(map) };
            map = layer.run(self.site.engine, &map, Take::Activation);
            at += 1;
        }
    }

    fn put_down(&mut self, layer: usize, photo: usize, map: &Map) -> io::Result<()> {
        if photo == 0 {
            let file = tempfile::tempfile_in(self.site.scratch)?;
            self.growing = Some(Station { layer, file, map: map.clone(), count: 0 });
        }
        let Some(mut growing) = self.growing.take() else { return Ok(()) };
        if growing.layer != layer || growing.count != photo {
            return Ok(());
        }
        growing.file.write_all(map.bytes())?;
        growing.count += 1;
        if growing.count == self.site.photos.len() {
            self.stored = Some(growing);
        } else {
            self.growing = Some(growing);
        }
        Ok(())
    }
}

impl Station {
    fn read(&mut self, photo: usize) -> io::Result<Map> {
        let mut map = self.map.clone();
        let length = map.bytes().len() as u64;
        self.file.seek(SeekFrom::Start(photo as u64 * length))?;
        self.file.read_exact(map.bytes_mut())?;
        Ok(map)
    }
}

fn io_at(scratch: &Path) -> impl Fn(io::Error) -> PruneError {
    let path: PathBuf = scratch.to_owned();
    move |error| PruneError::Scratch { path: path.clone(), error }
}

/// A photo as the first convolution reads it.
pub(super) fn image(photos: &Photos, photo: usize) -> Result<Map, PruneError> {
    Ok(Map::image(photos.input(photo, BASELINE_SIDE)?, BASELINE_SIDE))
}

/// Layers of few inputs are fitted on as many samples as this: they cost little there.
const SAMPLES: usize = 1 << 15;

/// How many pixels of each of `photos` maps to look at for `wanted` samples in all.
pub(super) fn per_photo(wanted: usize, photos: usize, side: usize) -> usize {
    wanted.max(SAMPLES).div_ceil(photos).min(side * side)
}

/// `count` different pixels of a map, evenly spread, from a random one on.
pub(super) fn places(
    side: usize,
    count: usize,
    random: &mut Random,
) -> impl Iterator<Item = usize> {
    let pixels = side * side;
    let start = (random.uniform() * pixels as f32) as usize;
    (0..count).map(move |i| (start + i * pixels / count) % pixels)
}

/// What is read at some pixels, and what is wanted there, row by row.
#[derive(Default)]
pub(super) struct Rows {
    /// Each row ends with the constant 1.
    pub(super) inputs: Vec<f32>,
    pub(super) wanted: Vec<f32>,
}

impl Rows {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.inputs.clear();
        self.wanted.clear();
    }

    /// Adds `pixels`: 3 x 3 of them around each where `patches` are read, and the channels `outputs`
    /// of what is wanted.
    pub(super) fn add(
        &mut self,
        pixels: impl Iterator<Item = usize>,
        (read, patches): (&Map, bool),
        (wanted, outputs): (&Map, &[usize]),
    ) {
        let row = if patches { 9 * read.channels } else { read.channels };
        for pixel in pixels {
            let (y, x) = (pixel / read.side, pixel % read.side);
            let from = self.inputs.len();
            self.inputs.resize(from + row + 1, 1.0);
            let to = &mut self.inputs[from..from + row];
            if patches {
                read.patch(y, x, to)
            } else {
                read.pixel(y, x, to)
            }
            self.wanted.extend(outputs.iter().map(|&channel| wanted.at(channel, y, x)));
        }
    }
}
