//! What happens in a folder, as the system tells it: the only user of notify.

use std::ffi::OsString;
use std::path::Path;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Something that happened to the file of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was closed after writing, or renamed into place.
    Complete(OsString),
    /// It was created; somebody may be writing it.
    Begun(OsString),
    /// It was removed or renamed away.
    Gone(OsString),
    /// Changes were missed, or will be: only listing the folder tells.
    Missed(String),
}

/// Ends the watching when dropped.
pub struct Watch {
    _watcher: RecommendedWatcher,
}

/// Watches `folder`, an absolute path, and calls `hear` from a thread of its own. Whatever else
/// happens in the folder, each single write for one, is not told.
///
/// # Errors
/// What the system says, in words; the folder can then only be listed.
pub fn folder(
    folder: &Path,
    mut hear: impl FnMut(Change) + Send + 'static,
) -> Result<Watch, String> {
    let parent = folder.to_owned();
    let translate = move |event: notify::Result<notify::Event>| {
        let event = match event {
            Ok(event) if event.need_rescan() => return hear(Change::Missed("overflow".to_owned())),
            Ok(event) => event,
            Err(error) => return hear(Change::Missed(error.to_string())),
        };
        let itself = event.paths.first() == Some(&parent);
        if itself
            && matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)))
        {
            return hear(Change::Missed("the folder was removed or renamed".to_owned()));
        }
        let kind = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Change::Complete,
            EventKind::Create(CreateKind::File) => Change::Begun,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                Change::Gone
            }
            _ => return,
        };
        let inside = event.paths.iter().filter(|path| path.parent() == Some(&parent));
        for name in inside.filter_map(|path| path.file_name()) {
            hear(kind(name.to_owned()));
        }
    };
    notify::recommended_watcher(translate)
        .and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(Watch { _watcher: watcher })
        })
        .map_err(|error| error.to_string())
}
