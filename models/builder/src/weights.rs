//! Weight files: tensors one after the other, each at an offset that is a multiple of 64, zeros
//! between them, no header. Graphs say what is where.

use vggd::manifest::WeightFile;

use crate::progress::Progress;
use crate::set::{SetFile, SetWriter, WriteError};
use crate::tensor::{Element, Number};

/// Every tensor begins at a multiple of this, so that a map of the file can be computed with as it
/// is.
pub const ALIGNMENT: u64 = 64;

/// Where a tensor is, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// What graphs call it.
    pub name: String,
    /// Type of its numbers.
    pub element: Element,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Weight file in the same folder as the graph.
    pub file: String,
    /// Where it begins in that file, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub length: u64,
}

/// A weight file on its way.
pub struct WeightWriter<'a> {
    file: SetFile,
    progress: &'a mut dyn Progress,
}

impl<'a> WeightWriter<'a> {
    /// Begins the weight file `name` of a set.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn create(
        set: &SetWriter,
        name: &str,
        progress: &'a mut dyn Progress,
    ) -> Result<Self, WriteError> {
        progress.now(name);
        let file = set.file(name)?;
        Ok(Self { file, progress })
    }

    /// Appends a tensor, in pieces as they come.
    ///
    /// # Errors
    /// [`WriteError::Io`] or [`WriteError::Interrupted`].
    ///
    /// # Panics
    /// If the pieces do not add up to `shape`.
    pub fn put<N: Number, Piece: AsRef<[N]>>(
        &mut self,
        name: String,
        shape: Vec<usize>,
        pieces: impl Iterator<Item = Piece>,
    ) -> Result<External, WriteError> {
        let padding = self.file.bytes().next_multiple_of(ALIGNMENT) - self.file.bytes();
        self.file.write(&[0; ALIGNMENT as usize][..padding as usize])?;
        let offset = self.file.bytes();
        for piece in pieces {
            let bytes = N::bytes(piece.as_ref());
            self.file.write(bytes)?;
            self.progress.advance(bytes.len() as u64)?;
        }
        let length = self.file.bytes() - offset;
        let expected = shape.iter().product::<usize>() * size_of::<N>();
        assert_eq!(length, expected as u64, "'{name}' has shape {shape:?}");
        Ok(External {
            name,
            element: N::ELEMENT,
            shape,
            file: self.file.name().to_owned(),
            offset,
            length,
        })
    }

    /// Puts the file on the disk.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn finish(self) -> Result<WeightFile, WriteError> {
        self.file.finish()
    }
}
