//! What a command writes: JPEGs, one after the other.
//!
//! Owns the command's process group from start to end; it does not know what the command is for. How
//! JPEGs are told apart is in `source::jpeg`, when the command is started again in `source::live`.
//!
//! The group is asked to end by SIGTERM, and ended by SIGKILL after a while; nothing of it is left. Should
//! this program be killed itself, the command ends at the next picture that it cannot write (SIGPIPE).

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::jpeg::Splitter;
use super::live::{Live, Reader, Reports};
use super::{Condition, Handoff, Picture, Source};
use crate::config::{self, SourceKind};

/// How long a command may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// Of what a command writes to standard error, however often it is started, so many lines are logged in so
/// much time, and so much of a line.
const LOGGED: (u32, Duration, u64) = (20, Duration::from_secs(60), 1000);

/// A command whose standard output are JPEGs.
pub struct Stream {
    command: String,
    limit: usize,
    said: Arc<Mutex<Said>>,
    live: Live,
}

impl Stream {
    /// The configured command; nothing is started yet.
    pub fn new(config: &config::Source) -> Self {
        Self {
            command: config.command.clone(),
            limit: usize::try_from(config.max_file()).unwrap_or(usize::MAX),
            said: Arc::default(),
            live: Live::new(SourceKind::Stream, config.timeout()),
        }
    }

    fn start(&self, reports: Reports) -> io::Result<Running> {
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(&self.command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let program = program(&self.command).to_owned();
        reports.opened(program.clone());
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        let limit = self.limit;
        let mut running = Running { child, program: program.clone(), threads: Vec::new() };
        let read = move || read(stdout, limit, &reports);
        let said = self.said.clone();
        let log = move || log(stderr, &program, &said);
        running.threads.push(thread::Builder::new().name("stream".to_owned()).spawn(read)?);
        running.threads.push(thread::Builder::new().name("stream log".to_owned()).spawn(log)?);
        Ok(running)
    }
}

impl Source for Stream {
    fn run(&self, handoff: &Handoff, tell: &dyn Fn(Condition)) {
        self.live.run(handoff, tell, |reports| self.start(reports));
    }

    fn stop(&self) {
        self.live.stop();
    }
}

/// The first word of a command: what follows may hold a password and is neither logged nor told.
fn program(command: &str) -> &str {
    command.split_whitespace().find(|word| !word.contains('=')).unwrap_or("command")
}

/// Reports every JPEG until the output ends.
fn read(mut stdout: ChildStdout, limit: usize, reports: &Reports) {
    let mut splitter = Splitter::new(limit);
    let mut buffer = vec![0; 1 << 16];
    while reports.wanted() {
        match stdout.read(&mut buffer) {
            Ok(0) => return reports.failed("its output ended".to_owned()),
            Ok(length) => splitter.push(&buffer[..length], |picture| {
                reports.picture(Picture::Encoded(picture), Duration::ZERO);
            }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return reports.failed(error.to_string()),
        }
    }
}

/// Lines of standard error since some time.
#[derive(Default)]
struct Said {
    since: Option<Instant>,
    count: u32,
}

impl Said {
    /// One more line at `now`: whether it is to be logged, and how many were not in the time before.
    fn count(&mut self, now: Instant) -> (bool, u32) {
        let (most, period, _) = LOGGED;
        let is_over = self.since.is_none_or(|since| now.duration_since(since) >= period);
        let left_out = match is_over {
            true => self.count.saturating_sub(most),
            false => 0,
        };
        if is_over {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        (self.count <= most, left_out)
    }
}

/// Logs what the command says, not all of it if it says too much.
fn log(stderr: ChildStderr, command: &str, said: &Mutex<Said>) {
    let (source, (_, _, length)) = (SourceKind::Stream.as_str(), LOGGED);
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(1..) = stderr.by_ref().take(length).read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now());
            let (is_logged, left_out) = said;
            if left_out > 0 {
                tracing::warn!(source, command, lines = left_out, "more was said");
            }
            if is_logged {
                tracing::warn!(source, command, line = %without_logins(text), "the command says");
            }
        }
        line.clear();
    }
}

/// A line in which addresses have lost their user and password: between `://` and the last `@` before the
/// next space or quotation mark.
fn without_logins(line: &str) -> String {
    let mut parts = line.split("://");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_whitespace() || "'\"".contains(c));
        let login = part[..end.unwrap_or(part.len())].rfind('@');
        plain += "://";
        plain += &login.map_or_else(|| part.to_owned(), |at| format!("…{}", &part[at..]));
    }
    plain
}

/// A command that was started, alone in its process group.
struct Running {
    child: Child,
    program: String,
    /// They end with the last process that holds the command's outputs.
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Whether the command ends within [`GRACE`], and all that it has started with its outputs. It stays
    /// a zombie, so that its process group cannot become somebody else's.
    fn ends(&self) -> bool {
        let deadline = Instant::now() + GRACE;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            let exited = waitid(WaitId::Pid(Pid::from_child(&self.child)), options);
            let closed = self.threads.iter().all(JoinHandle::is_finished);
            if closed && !matches!(exited, Ok(None)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(LOOK);
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child), signal).ok();
    }
}

impl Reader for Running {
    fn close(mut self, failed: bool) -> Option<String> {
        if !failed || !self.ends() {
            self.signal(Signal::TERM);
            self.ends();
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().ok()?;
        Some(match status.code() {
            Some(127) => format!("{}: no such command, or one in it", self.program),
            _ => format!("{}: ended, {status}", self.program),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::KILL);
            self.child.wait().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_not_logged() {
        let check = |line: &str, expected: &str| assert_eq!(without_logins(line), expected);
        check("Input #0, mjpeg, from 'pipe:':", "Input #0, mjpeg, from 'pipe:':");
        check("rtsp://camera/1: 404", "rtsp://camera/1: 404");
        check("rtsp://me:secret@camera/1: 404", "rtsp://…@camera/1: 404");
        check("from 'rtsp://me:s@c/r:e?t@camera/1' and a@b", "from 'rtsp://…@camera/1' and a@b");
        check("a://b:c@d e://f:g@h://i:j@k", "a://…@d e://…@h://…@k");
        check("://@", "://…@");
    }

    #[test]
    fn a_command_that_fails_again_and_again_fills_no_log() {
        let (most, period, _) = LOGGED;
        let (mut said, start) = (Said::default(), Instant::now());
        // Each is another start's, a second after the one before.
        let logged = |said: &mut Said, start: Instant| {
            let seconds = (0..period.as_secs()).map(Duration::from_secs);
            seconds.map(|after| said.count(start + after)).filter(|(logged, _)| *logged).count()
        };
        assert_eq!(logged(&mut said, start), most as usize);
        let left_out = period.as_secs() as u32 - most;
        assert_eq!(said.count(start + period), (true, left_out));
        assert_eq!(said.count(start + period), (true, 0));
    }
}
