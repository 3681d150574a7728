//! Where frames come from. A source finds frames and later hears what became of each; it must not
//! know how they are classified or published.

pub mod directory;

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

/// One photo on its way through the daemon. Its bytes stay on disk until it is decoded.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Name of the file in its directory; what is not UTF-8 in it is replaced.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The same for the same content at the same place, also after a restart.
    pub id: String,
    /// When the photo was written.
    pub captured_at: SystemTime,
    /// When the source found it complete.
    pub found_at: Instant,
    identity: directory::Identity,
}
