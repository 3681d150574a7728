//! Ordinary JPEGs at a quarter or an eighth of their size, straight from their DCT coefficients.
//!
//! Ordinary is what cameras write: baseline, 8 bits, one scan, grey or YCbCr with colour at full or half
//! resolution. Of everything else, and of whatever is not sound to the last bit, this makes nothing;
//! the decoder that knows all kinds and names the damage has its turn then. So there are no errors
//! here, and no picture that the other decoder refuses.
//!
//! Each block of 8 x 8 pixels becomes 2 x 2 or 1, by the inverse DCT of that size over its lowest
//! frequencies. A block of colour at half resolution becomes twice that, so that nothing has to be
//! enlarged. Most of the time goes into reading the coefficients, which no size saves.

mod entropy;

use std::f32::consts::PI;

use entropy::{Bits, Code};
use image::RgbImage;

/// The scales there are, the smallest picture first.
pub(super) const SCALES: [u32; 2] = [8, 4];

/// The picture with each side divided by `scale`, one of [`SCALES`], which must divide both.
pub(super) fn decode(bytes: &[u8], scale: u32) -> Option<RgbImage> {
    let scale = scale as usize;
    let mut header = Header::default();
    let scan = header.read(bytes.strip_prefix(&[0xff, 0xd8])?)?;
    let frame = header.frame.as_ref()?;
    let planes = frame.components.iter().map(|part| Plane::new(frame, part, scale));
    let mut planes: Vec<Plane> = planes.collect();
    header.decode_scan(frame, scan, &mut planes)?;
    let (width, height) = (frame.width / scale, frame.height / scale);
    RgbImage::from_raw(width as u32, height as u32, to_rgb(&planes, width, height))
}

/// One of brightness and the two colours (T.81, B.2.2): how many blocks of it a unit has, and which
/// tables and codes are for it.
#[derive(Clone, Copy)]
struct Component {
    id: u8,
    across: usize,
    down: usize,
    quantization: usize,
    dc: usize,
    ac: usize,
}

struct Frame {
    width: usize,
    height: usize,
    components: Vec<Component>,
    /// How many units there are.
    columns: usize,
    rows: usize,
}

/// What comes before the scan.
#[derive(Default)]
struct Header {
    frame: Option<Frame>,
    quantization: [Option<[u16; 64]>; 4],
    dc: [Option<Box<Code>>; 4],
    ac: [Option<Box<Code>>; 4],
    /// Units between restart markers; 0: there are none.
    restart: usize,
}

/// A component on its way through the scan.
struct Part<'a> {
    component: Component,
    dc: &'a Code,
    ac: &'a Code,
    quantization: [f32; 64],
    before: i32,
}

impl Header {
    /// Reads up to the scan and returns that.
    fn read<'a>(&mut self, mut bytes: &'a [u8]) -> Option<&'a [u8]> {
        loop {
            let [0xff, marker, h, l, ..] = *bytes else { return None };
            let length = usize::from(u16::from_be_bytes([h, l]));
            let data = bytes.get(4..(2 + length).max(4))?;
            bytes = &bytes[2 + length..];
            match marker {
                0xc0 if self.frame.is_none() => self.frame = Some(frame(data)?),
                0xc4 => self.codes(data)?,
                0xdb => self.tables(data)?,
                0xdd => self.restart = usize::from(u16::from_be_bytes(data.try_into().ok()?)),
                0xee if data.starts_with(b"Adobe") && data.get(11) == Some(&0) => return None,
                0xe0..=0xef | 0xfe => {}
                0xda => {
                    self.scan(data)?;
                    return Some(bytes);
                }
                _ => return None,
            }
        }
    }
    fn codes(&mut self, mut data: &[u8]) -> Option<()> {
        while let Some((kind, rest)) = data.split_first() {
            let counts: &[u8; 16] = rest.first_chunk()?;
            let total: usize = counts.iter().map(|c| usize::from(*c)).sum();
            let values = rest.get(16..16 + total)?;
            let code = Some(Box::new(Code::new(counts, values)?));
            match kind >> 4 {
                0 => *self.dc.get_mut(usize::from(kind & 15))? = code,
                1 => *self.ac.get_mut(usize::from(kind & 15))? = code,
                _ => return None,
            }
            data = &rest[16 + total..];
        }
        Some(())
    }
    fn tables(&mut self, mut data: &[u8]) -> Option<()> {
        while let Some((kind, rest)) = data.split_first() {
            let values: &[u8; 64] = rest.first_chunk()?;
            *self.quantization.get_mut(usize::from(*kind))? = Some(values.map(u16::from));
            data = &rest[64..];
        }
        Some(())
    }
    fn scan(&mut self, data: &[u8]) -> Option<()> {
        let components = &mut self.frame.as_mut()?.components;
        let (count, rest) = data.split_first()?;
        if usize::from(*count) != components.len()
            || rest.len() != 2 * components.len() + 3
            || !rest.ends_with(&[0, 63, 0])
        {
            return None;
        }
        for (component, choice) in components.iter_mut().zip(rest.chunks_exact(2)) {
            if component.id != choice[0] {
                return None;
            }
            component.dc = usize::from(choice[1] >> 4);
            component.ac = usize::from(choice[1] & 15);
        }
        Some(())
    }
    fn decode_scan(&self, frame: &Frame, scan: &[u8], planes: &mut [Plane]) -> Option<()> {
        let mut parts = Vec::new();
        for component in &frame.components {
            parts.push(Part {
                component: *component,
                dc: self.dc.get(component.dc)?.as_deref()?,
                ac: self.ac.get(component.ac)?.as_deref()?,
                quantization: self
                    .quantization
                    .get(component.quantization)?
                    .as_ref()?
                    .map(f32::from),
                before: 0,
            });
        }
        let mut bits = Bits::new(scan);
        let mut left = self.restart;
        let mut next = 0xd0;
        for row in 0..frame.rows {
            for column in 0..frame.columns {
                if self.restart > 0 {
                    if left == 0 {
                        bits.marker(next)?;
                        next = 0xd0 | (next + 1) & 7;
                        left = self.restart;
                        parts.iter_mut().for_each(|part| part.before = 0);
                    }
                    left -= 1;
                }
                if bits.are_spent() {
                    return None;
                }
                for (part, plane) in parts.iter_mut().zip(planes.iter_mut()) {
                    for down in 0..part.component.down {
                        for across in 0..part.component.across {
                            let mut block = [0.0; 64];
                            part.before = part.before.wrapping_add(part.dc.difference(&mut bits)?);
                            block[0] = part.before as f32 * part.quantization[0];
                            let varied =
                                part.ac.block(&mut bits, &part.quantization, &mut block)?;
                            plane.put(
                                column * part.component.across + across,
                                row * part.component.down + down,
                                &block,
                                varied,
                            );
                        }
                    }
                }
            }
        }
        bits.marker(0xd9)
    }
}

fn frame(data: &[u8]) -> Option<Frame> {
    let [8, h1, h0, w1, w0, count, rest @ ..] = data else { return None };
    let [width, height] = [[*w1, *w0], [*h1, *h0]].map(|b| usize::from(u16::from_be_bytes(b)));
    let mut components: Vec<Component> = rest
        .chunks_exact(3)
        .map(|c| Component {
            id: c[0],
            across: usize::from(c[1] >> 4),
            down: usize::from(c[1] & 15),
            quantization: usize::from(c[2]),
            dc: 0,
            ac: 0,
        })
        .collect();
    if rest.len() != 3 * usize::from(*count) || width == 0 || height == 0 {
        return None;
    }
    let (a, d) = match &mut components[..] {
        [grey] => {
            (grey.across, grey.down) = (1, 1);
            (1, 1)
        }
        [y, u, v]
            if (u.across, u.down, v.across, v.down) == (1, 1, 1, 1)
                && (1..=2).contains(&y.across)
                && (1..=2).contains(&y.down) =>
        {
            (y.across, y.down)
        }
        _ => return None,
    };
    Some(Frame {
        width,
        height,
        components,
        columns: width.div_ceil(8 * a),
        rows: height.div_ceil(8 * d),
    })
}

/// Most samples of a block across or down.
const MOST: usize = 4;

/// How much each frequency adds to each sample of a block's row or column.
type Basis = [[f32; MOST]; MOST];

/// The samples of a component.
struct Plane {
    stride: usize,
    /// Of a block.
    width: usize,
    height: usize,
    bases: [Basis; 2],
    bytes: Vec<u8>,
}

/// Row n, column k: what frequency k of eight adds to sample n of `size`.
fn basis(size: usize) -> Basis {
    let mut basis = [[0.0; MOST]; MOST];
    for (n, row) in basis.iter_mut().enumerate().take(size) {
        for (k, value) in row.iter_mut().enumerate().take(size) {
            let norm: f32 = if k == 0 { 1.0 } else { 2.0 };
            *value = (norm / 8.0).sqrt()
                * ((2 * n + 1) as f32 * k as f32 * PI / (2 * size) as f32).cos();
        }
    }
    basis
}

impl Plane {
    fn new(frame: &Frame, component: &Component, scale: usize) -> Self {
        let most = frame.components[0];
        let width = 8 * (most.across / component.across) / scale;
        let height = 8 * (most.down / component.down) / scale;
        let stride = frame.columns * component.across * width;
        let bytes = vec![0; stride * frame.rows * component.down * height];
        Self { stride, width, height, bases: [basis(width), basis(height)], bytes }
    }
    /// Puts a block in its place; if it is not `varied`, it is of one brightness.
    #[inline(always)]
    fn put(&mut self, column: usize, row: usize, block: &[f32; 64], varied: bool) {
        let at = row * self.height * self.stride + column * self.width;
        if !varied {
            let flat = (block[0] / 8.0 + 128.5) as u8;
            for line in 0..self.height {
                self.bytes[at + line * self.stride..][..self.width].fill(flat);
            }
            return;
        }
        match (self.width, self.height) {
            (1, 1) => self.bytes[at] = (block[0] / 8.0 + 128.5) as u8,
            (2, 2) => self.transform::<2, 2>(at, block),
            (4, 4) => self.transform::<4, 4>(at, block),
            (4, 2) => self.transform::<4, 2>(at, block),
            (2, 4) => self.transform::<2, 4>(at, block),
            (2, 1) => self.transform::<2, 1>(at, block),
            _ => self.transform::<1, 2>(at, block),
        }
    }
    #[inline(always)]
    fn transform<const W: usize, const H: usize>(&mut self, at: usize, block: &[f32; 64]) {
        let [across, down] = &self.bases;
        let mut half = [[0.0f32; W]; H];
        for (half, row) in half.iter_mut().zip(block.chunks_exact(8)) {
            for (sample, basis) in half.iter_mut().zip(across) {
                *sample = basis[..W].iter().zip(row).map(|(basis, value)| basis * value).sum();
            }
        }
        for (line, basis) in down[..H].iter().enumerate() {
            let output = &mut self.bytes[at + line * self.stride..][..W];
            for (column, output) in output.iter_mut().enumerate() {
                let parts = basis[..H].iter().zip(&half).map(|(basis, half)| basis * half[column]);
                *output = (parts.sum::<f32>() + 128.5) as u8;
            }
        }
    }
}

fn to_rgb(planes: &[Plane], width: usize, height: usize) -> Vec<u8> {
    let mut rgb = vec![0; 3 * width * height];
    for (row, line) in rgb.chunks_exact_mut(3 * width).enumerate() {
        let samples = |plane: usize| &planes[plane].bytes[row * planes[plane].stride..][..width];
        match planes.len() {
            1 => {
                for (out, y) in line.chunks_exact_mut(3).zip(samples(0)) {
                    out.fill(*y);
                }
            }
            _ => {
                for (((out, y), u), v) in
                    line.chunks_exact_mut(3).zip(samples(0)).zip(samples(1)).zip(samples(2))
                {
                    let (y, u, v) =
                        (f32::from(*y) + 0.5, f32::from(*u) - 128.0, f32::from(*v) - 128.0);
                    out[0] = (y + 1.402 * v) as u8;
                    out[1] = (y - 0.344_136 * u - 0.714_136 * v) as u8;
                    out[2] = (y + 1.772 * u) as u8;
                }
            }
        }
    }
    rgb
}
