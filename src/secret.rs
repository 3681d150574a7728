//! Passwords and tokens: the first line of a file or, without one, a credential that systemd hands over.

use std::env;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};

/// Where systemd puts credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Where systemd finds those of the packaged service, by names that begin so.
const STORE: &str = "/etc/credstore/vggd.";

/// Where the service will find `credential`, as far as whoever asks may see; nothing if systemd has started
/// this program, and so knows.
pub fn stored(credential: &str) -> Option<PathBuf> {
    let path = PathBuf::from(format!("{STORE}{credential}"));
    (env::var_os(CREDENTIALS).is_none() && path.exists()).then_some(path)
}

/// The secret in `file`, the value of `key`; if that is empty, in systemd's `credential`. Nothing if there
/// is neither. So many `bytes` it must have.
///
/// # Errors
/// [`ConfigError`] that names the key or the credential, and the file.
pub fn read(
    config: &Config,
    key: &str,
    file: &Path,
    credential: &str,
    bytes: RangeInclusive<usize>,
) -> Result<Option<Vec<u8>>, ConfigError> {
    let (path, text) = if file.as_os_str().is_empty() {
        let Some(folder) = env::var_os(CREDENTIALS) else { return Ok(None) };
        let path = Path::new(&folder).join(credential);
        match fs::read(&path) {
            Ok(text) => (path, text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let message = format!("{}: {error}", path.display());
                return Err(ConfigError { origin: Some(CREDENTIALS.to_owned()), message });
            }
        }
    } else {
        let wrong = |error| config.wrong(key, file.display(), error);
        (file.to_owned(), fs::read(file).map_err(wrong)?)
    };
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if bytes.contains(&line.len()) {
        return Ok(Some(line.to_owned()));
    }
    let (least, most) = bytes.into_inner();
    let problem = format!("its first line must have from {least} to {most} bytes");
    Err(config.wrong(key, path.display(), problem))
}
