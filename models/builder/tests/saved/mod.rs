//! Writes state dicts as torch.save has over time, a state dict's tensors being those of a map.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use vggd_models::tensor::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

pub(crate) type Tensors = BTreeMap<String, Tensor<'static>>;

/// How a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A class whose state is set, in a Parameter whose state is set.
    First,
    /// `_rebuild_tensor`, in a call of Parameter.
    Then,
    /// `_rebuild_tensor_v2`, in a call of `_rebuild_parameter`.
    Now,
}

/// What is written, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) dialect: Dialect,
    /// Whether Python 2 writes it: texts are bytes, an OrderedDict is called with its pairs.
    pub(crate) python2: bool,
    /// Whether weights are parameters.
    pub(crate) parameters: bool,
    /// Whether tensors were on a GPU.
    pub(crate) cuda: bool,
    /// Whether storages are parts of larger ones.
    pub(crate) parts: bool,
}

impl Style {
    pub(crate) const NOW: Self = Self {
        dialect: Dialect::Now,
        python2: false,
        parameters: false,
        cuda: false,
        parts: false,
    };
}

/// Numbers before a part of a storage.
const BEFORE: usize = 3;

/// A pickle under way.
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub(crate) fn text(&mut self, text: &str, python2: bool) -> &mut Self {
        if python2 {
            self.op(&[b'U', text.len() as u8])
        } else {
            self.op(b"X").op(&(text.len() as u32).to_le_bytes())
        };
        self.op(text.as_bytes()).op(b"q\0")
    }

    pub(crate) fn int(&mut self, number: usize) -> &mut Self {
        match number {
            0..0x100 => self.op(&[b'K', number as u8]),
            0x100..0x1_0000 => self.op(b"M").op(&(number as u16).to_le_bytes()),
            _ => self.op(b"J").op(&(number as i32).to_le_bytes()),
        }
    }

    pub(crate) fn ints(&mut self, numbers: &[usize]) -> &mut Self {
        self.op(b"(");
        for number in numbers {
            self.int(*number);
        }
        self.op(b"t")
    }

    pub(crate) fn stop(&mut self) -> Vec<u8> {
        self.op(b".");
        self.0.clone()
    }

    /// A tensor row by row in the storage `key`.
    pub(crate) fn tensor(&mut self, key: &str, shape: &[usize], style: Style) -> &mut Self {
        let strides: Vec<usize> =
            (1..=shape.len()).map(|from| shape[from..].iter().product()).collect();
        self.view(key, shape, &strides, 0, style)
    }

    pub(crate) fn view(
        &mut self,
        key: &str,
        shape: &[usize],
        strides: &[usize],
        offset: usize,
        style: Style,
    ) -> &mut Self {
        let module = if style.cuda { "torch.cuda" } else { "torch" };
        match style.dialect {
            Dialect::First => self.global(module, "FloatTensor").op(b")R("),
            Dialect::Then => self.global("torch._utils", "_rebuild_tensor").op(b"("),
            Dialect::Now => self.global("torch._utils", "_rebuild_tensor_v2").op(b"("),
        };
        self.op(b"(").text("storage", style.python2).global(module, "FloatStorage");
        self.text(key, style.python2);
        self.text(if style.cuda { "cuda:0" } else { "cpu" }, style.python2);
        let numbers = shape.iter().product();
        self.int(numbers);
        if style.parts {
            self.op(b"(").text("part", style.python2).int(BEFORE).int(numbers).op(b"t");
        } else {
            self.op(b"N");
        }
        self.op(b"tQ").int(offset).ints(shape).ints(strides);
        match style.dialect {
            Dialect::First => self.op(b"tb"),
            Dialect::Then => self.op(b"tR"),
            Dialect::Now => self.op(b"\x89").global("collections", "OrderedDict").op(b")RtR"),
        }
    }

    fn parameter(&mut self, key: &str, shape: &[usize], style: Style) -> &mut Self {
        match style.dialect {
            Dialect::First => self
                .global("torch.nn.parameter", "Parameter")
                .op(b")\x81(")
                .tensor(key, shape, style)
                .op(b"NN\x88\x89tb"),
            Dialect::Then => self
                .global("torch.nn.parameter", "Parameter")
                .tensor(key, shape, style)
                .op(b"\x85R\x88\x89N\x87b"),
            Dialect::Now => self
                .global("torch._utils", "_rebuild_parameter")
                .tensor(key, shape, style)
                .op(b"\x88")
                .global("collections", "OrderedDict")
                .op(b")R\x87R"),
        }
    }
}

/// The pickle of a state dict whose tensors are in storages "0", "1" and so on.
pub(crate) fn state_dict(tensors: &Tensors, style: Style) -> Vec<u8> {
    let mut pickle = Pickle::new();
    pickle.global("collections", "OrderedDict");
    pickle.op(if style.python2 { b"](" } else { b")R(" });
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        if style.python2 {
            pickle.op(b"](");
        }
        pickle.text(name, style.python2);
        let key = key.to_string();
        if style.parameters {
            pickle.parameter(&key, tensor.shape(), style);
        } else {
            pickle.tensor(&key, tensor.shape(), style);
        }
        if style.python2 {
            pickle.op(b"e");
        }
    }
    if style.python2 {
        return pickle.op(b"e\x85R").stop();
    }
    pickle.op(b"u}").text("_metadata", false);
    pickle.global("collections", "OrderedDict").op(b")Rsb").stop()
}

/// The numbers of each storage, in the order of the keys.
pub(crate) fn storages(tensors: &Tensors, style: Style) -> Vec<Vec<f32>> {
    let before = vec![f32::NAN; if style.parts { BEFORE } else { 0 }];
    tensors.values().map(|tensor| [&before, &tensor.values()[..]].concat()).collect()
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The container before torch 1.6.
pub(crate) fn legacy(pickle: &[u8], storages: &[Vec<f32>]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    let mut machine = Pickle::new();
    machine.op(b"}(").text("protocol_version", false).int(1001);
    machine.text("little_endian", false).op(b"\x88u");
    file.extend(machine.stop());
    file.extend(pickle);
    let mut keys = Pickle::new();
    keys.op(b"](");
    for key in 0..storages.len() {
        keys.text(&key.to_string(), false);
    }
    file.extend(keys.op(b"e").stop());
    for storage in storages {
        file.extend((storage.len() as u64).to_le_bytes());
        file.extend(bytes(storage));
    }
    file
}

/// A zip archive of these files.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64);
    for (name, content) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The container since torch 1.6.
pub(crate) fn zipped(pickle: &[u8], storages: &[Vec<f32>]) -> Vec<u8> {
    let storages: Vec<(String, Vec<u8>)> = (storages.iter().enumerate())
        .map(|(key, storage)| (format!("archive/data/{key}"), bytes(storage)))
        .collect();
    let mut files = vec![("archive/data.pkl", pickle), ("archive/byteorder", b"little")];
    files.extend(storages.iter().map(|(name, content)| (name.as_str(), &content[..])));
    files.push(("archive/version", b"3\n"));
    archive(&files)
}
