//! Which format a file is in, by its first bytes; for what is none of them, what it is instead.

/// A format that has a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    /// What torch.save writes since version 1.6.
    TorchZip,
    /// What torch.save wrote before, and still writes when it is told to.
    TorchLegacy,
    Onnx,
}

/// The longest header that safetensors allows, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

impl Format {
    /// The format of a file with these `bytes`, or what else it looks like, for people.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.starts_with(b"PK\x03\x04") {
            Ok(Self::TorchZip)
        } else if is_torch_legacy(bytes) {
            Ok(Self::TorchLegacy)
        } else if is_safetensors(bytes) {
            Ok(Self::Safetensors)
        } else if is_onnx(bytes) {
            Ok(Self::Onnx)
        } else {
            Err(something_else(bytes))
        }
    }
}

/// The pickle of torch's magic number, written with any protocol.
fn is_torch_legacy(bytes: &[u8]) -> bool {
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    bytes.first() == Some(&0x80) && bytes.get(2..).is_some_and(|rest| rest.starts_with(magic))
}

/// The length of a header, then the header, which is JSON.
fn is_safetensors(bytes: &[u8]) -> bool {
    (bytes.split_first_chunk::<8>()).is_some_and(|(n, rest)| {
        u64::from_le_bytes(*n) <= LONGEST_HEADER && rest.first() == Some(&b'{')
    })
}

/// Field 1 of a ModelProto, the version of the format, then any of fields 2 to 8. Protobuf has no
/// magic number, but every writer puts fields in order.
fn is_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=30, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42, ..])
}

fn something_else(bytes: &[u8]) -> &'static str {
    let head = &bytes[..bytes.len().min(1024)];
    let text = str::from_utf8(head).or_else(|error| {
        let cut_off = error.error_len().is_none();
        str::from_utf8(&head[..if cut_off { error.valid_up_to() } else { 0 }])
    });
    let text = text.unwrap_or_default().trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    if bytes.is_empty() {
        "empty"
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        "a web page"
    } else if text.starts_with("version https://git-lfs") {
        "a pointer of Git LFS, without the file itself"
    } else if !text.is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        "text"
    } else if bytes.get(257..262) == Some(b"ustar") {
        "a tar archive"
    } else if bytes.starts_with(b"\x1f\x8b") {
        "compressed by gzip"
    } else if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        "HDF5, as Keras writes it"
    } else if bytes.starts_with(b"\x93NUMPY") {
        "an array of NumPy"
    } else if matches!(bytes, [0x80, 2..=5, ..]) {
        "a pickle that torch.save did not write"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides() {
        let tar = [&[b'x'; 256][..], b"\0ustar\0"].concat();
        let cases: &[(&[u8], Result<Format, &str>)] = &[
            (b"PK\x03\x04...", Ok(Format::TorchZip)),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80", Ok(Format::TorchLegacy)),
            (b"\x02\0\0\0\0\0\0\0{}", Ok(Format::Safetensors)),
            (b"\x08\x08\x12\x07pytorch", Ok(Format::Onnx)),
            (b"\x08\x03:\x80", Ok(Format::Onnx)),
            (b"", Err("empty")),
            (b"\xef\xbb\xbf\n<!DOCTYPE HTML>", Err("a web page")),
            (b"<html><body>404", Err("a web page")),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                Err("a pointer of Git LFS, without the file itself"),
            ),
            (b"tench\ngoldfish\n", Err("text")),
            (&tar, Err("a tar archive")),
            (b"\x1f\x8b\x08\0", Err("compressed by gzip")),
            (b"\x89HDF\r\n\x1a\n\0", Err("HDF5, as Keras writes it")),
            (b"\x93NUMPY\x01\0", Err("an array of NumPy")),
            (b"\x80\x02}q\0.", Err("a pickle that torch.save did not write")),
            (b"\xff\xfb\x90\x44", Err("something else")),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Format::of(bytes), *expected, "{:?}", bytes.escape_ascii().to_string());
        }
        let long = [b"caf\xc3\xa9 ".repeat(200)].concat();
        for end in 1020..1030 {
            assert_eq!(Format::of(&long[..end]), Err("text"), "{end}");
        }
    }
}
