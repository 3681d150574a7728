//! A photo's way out of the folder: into another one, under a name that is free there and not too
//! long. It knows nothing of why.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The most bytes of a file's name.
const LONGEST: usize = 255;

/// An extension longer than this is none.
const LONGEST_EXTENSION: usize = 16;

/// Moves `photo`, the link itself if it is one, into `folder`, which is made if it is missing, and
/// gives its new path. What is there under its name is kept: the photo gets a number. A name that
/// cannot take the number, or `beside` after it, is cut; that name with `beside` is free too.
///
/// # Errors
/// When the system does not allow it, or `folder` is on another file system.
pub(super) fn move_into(folder: &Path, photo: &Path, beside: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let name = photo.file_name().expect("a photo has a name");
    let target = |number| folder.join(numbered(name, number, beside.len()));
    let taken = |number| {
        let target: PathBuf = target(number);
        let exists = |path: &Path| path.symlink_metadata().is_ok();
        exists(&target) || !beside.is_empty() && exists(&with(&target, beside))
    };
    let target = target(first_free(taken));
    match fs::rename(photo, &target) {
        // Somebody empties the folder by removing it, at this very moment.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && photo.symlink_metadata().is_ok() =>
        {
            fs::create_dir_all(folder)?;
            fs::rename(photo, &target)?;
        }
        moved => moved?,
    }
    Ok(target)
}

/// What names begin with of photos that are about to be removed.
const HIDDEN: &[u8] = b".vggd-";

/// Hides `photo` in its folder, and gives its new path. If its name is too long for that, removes it.
///
/// # Errors
/// When the system does not allow it.
pub(super) fn hide(photo: &Path) -> io::Result<Option<PathBuf>> {
    let name = photo.file_name().expect("a photo has a name");
    let hidden = [HIDDEN, name.as_bytes()].concat();
    if hidden.len() > LONGEST {
        fs::remove_file(photo)?;
        return Ok(None);
    }
    let hidden = photo.with_file_name(OsString::from_vec(hidden));
    fs::rename(photo, &hidden)?;
    Ok(Some(hidden))
}

/// Gives what lies hidden in `folder` its name back, after a crash.
///
/// # Errors
/// When the folder cannot be listed.
pub(super) fn show_hidden(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().as_bytes();
        if let Some(name) = name.strip_prefix(HIDDEN).filter(|name| !name.is_empty()) {
            put_back(&path, &path.with_file_name(OsStr::from_bytes(name)));
        }
    }
    Ok(())
}

/// Moves a photo back to where it was; not if another one lies there by now, which has taken its place.
pub(super) fn put_back(moved: &Path, photo: &Path) {
    renameat_with(CWD, moved, CWD, photo, RenameFlags::NOREPLACE).ok();
}

/// `path` with `ending` after its name.
pub(super) fn with(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// The first free number if those that are taken have no gaps, else one of the free ones, asking few
/// times either way.
fn first_free(taken: impl Fn(u64) -> bool) -> u64 {
    if !taken(0) {
        return 0;
    }
    let (mut low, mut high) = (0, 1);
    while taken(high) {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = low.midpoint(high);
        match taken(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

/// `name` with `number` before its extension unless that is 0, cut to leave room for `spare` bytes.
fn numbered(name: &OsStr, number: u64, spare: usize) -> OsString {
    let (stem, extension) = match Path::new(name).extension() {
        Some(extension) if extension.len() <= LONGEST_EXTENSION => {
            (name.len() - extension.len() - 1, extension.len() + 1)
        }
        _ => (name.len(), 0),
    };
    let number = match number {
        0 => String::new(),
        number => format!("-{number}"),
    };
    let bytes = name.as_bytes();
    let mut end = stem.min(LONGEST - extension - number.len() - spare);
    while end < stem && end > 1 && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    OsString::from_vec([&bytes[..end], number.as_bytes(), &bytes[stem..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbered_and_cut() {
        let check = |name: &str, number, spare, expected: &str| {
            assert_eq!(numbered(name.as_ref(), number, spare), expected, "{name}");
        };
        check("door.jpg", 0, 4, "door.jpg");
        check("door.jpg", 12, 4, "door-12.jpg");
        check("door", 1, 0, "door-1");
        check("door.", 1, 0, "door-1.");
        let long = "x".repeat(251);
        check(&format!("{long}.jpg"), 0, 0, &format!("{long}.jpg"));
        check(&format!("{long}.jpg"), 0, 4, &format!("{}.jpg", &long[..247]));
        check(&format!("{long}.jpg"), 10, 4, &format!("{}-10.jpg", &long[..244]));
        check(&format!("a.{}", &long[2..]), 1, 4, &format!("a.{}-1", &long[..247]));
        let umlauts = "ä".repeat(125);
        check(&format!("{umlauts}.jpg"), 0, 4, &format!("{}.jpg", &umlauts[..246]));
    }

    #[test]
    fn a_free_number_is_found_in_few_steps() {
        for used in [0, 1, 2, 3, 4, 100, 1 << 40] {
            let steps = std::cell::Cell::new(0);
            let taken = |number| {
                steps.set(steps.get() + 1);
                number < used
            };
            assert_eq!(first_free(taken), used);
            assert!(steps.get() < 90, "{} steps for {used}", steps.get());
        }
    }
}
