//! Whether the daemon lives, and whether a frame that came now would be classified: verdicts on what others
//! have seen.

use crate::event::Origin;

/// Whether every part gets on; `stuck` is one that does not.
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn health(stuck: Option<&str>) -> Result<(), String> {
    stuck.map_or(Ok(()), |part| Err(format!("{part} is stuck")))
}

/// Whether frames are classified as soon as they come.
///
/// # Errors
/// Why not, in a few words.
pub(super) fn readiness(stuck: Option<&str>, source: &Origin, paused: bool) -> Result<(), String> {
    health(stuck)?;
    if !source.working {
        return Err(format!("{}: {}", source.kind, source.detail));
    }
    if paused { Err("paused".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_the_worst_first() {
        let source = |working| Origin { kind: "camera", working, detail: "/dev/video0".to_owned() };
        let cases = [
            (None, true, false, Ok(()), Ok(())),
            (None, true, true, Ok(()), Err("paused")),
            (None, false, false, Ok(()), Err("camera: /dev/video0")),
            (None, false, true, Ok(()), Err("camera: /dev/video0")),
            (Some("keep"), true, false, Err("keep is stuck"), Err("keep is stuck")),
            (Some("keep"), false, true, Err("keep is stuck"), Err("keep is stuck")),
        ];
        for (stuck, working, paused, alive, ready) in cases {
            assert_eq!(health(stuck), alive.map_err(str::to_owned));
            let found = readiness(stuck, &source(working), paused);
            assert_eq!(found, ready.map_err(str::to_owned), "{stuck:?} {working} {paused}");
        }
    }
}
