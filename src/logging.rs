//! Logging: fields and a short sentence, to the journal when stdout leads there, else to stderr; or as
//! JSON to stdout.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use systemd_journal_logger::JournalLog;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Starts logging at `level`, or at what the environment variable RUST_LOG says. With `json` each event is
/// an object on a line of stdout.
///
/// # Panics
/// When called twice.
pub fn start(level: &str, json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let text = || {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .boxed()
    };
    let layer = structured(json).unwrap_or_else(text);
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

/// Says why the program ends, as an error in the journal, as JSON with `json`, or else as a line on stderr,
/// whether or not logging was started.
pub fn fatal(error: &str, json: bool) {
    let Some(layer) = structured(json) else { return eprintln!("vggd: {error}") };
    let registry = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(registry, || tracing::error!(error, "cannot go on"));
}

/// Where events go with every field by itself, if they do.
fn structured<S>(json: bool) -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if json {
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let lines = lines.with_current_span(false).with_span_list(false).with_target(false);
        return Some(lines.with_writer(io::stdout).boxed());
    }
    journal().map(Layer::boxed)
}

fn journal() -> Option<Journal> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stdout = io::stdout().as_fd().try_clone_to_owned().ok()?;
    let stdout = File::from(stdout).metadata().ok()?;
    let leads_there = stream == format!("{}:{}", stdout.dev(), stdout.ino());
    let journal = leads_there.then(JournalLog::new)?.ok()?;
    Some(Journal(journal.with_syslog_identifier("vggd".to_owned())))
}

/// Hands each event to the journal with its fields as journal fields, and with syslog's priorities: error 3,
/// warning 4, info 6, debug 7.
struct Journal(JournalLog);

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        // The logger reckons from notice (5) downwards what is info (6) and debug (7) everywhere else.
        let level = match *metadata.level() {
            Level::ERROR => log::Level::Error,
            Level::WARN => log::Level::Warn,
            Level::INFO => log::Level::Debug,
            Level::DEBUG | Level::TRACE => log::Level::Trace,
        };
        let mut record = log::Record::builder();
        record.level(level).target(metadata.target()).module_path(metadata.module_path());
        record.file(metadata.file()).line(metadata.line()).key_values(&fields.values);
        // There is nobody left to tell when the journal is gone.
        self.0.journal_send(&record.args(format_args!("{fields}")).build()).ok();
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    values: BTreeMap<String, String>,
}

/// The message with its fields behind it, for people who read the journal without `-o json`.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.values.iter().try_for_each(|(name, value)| match value.contains(' ') {
            true => write!(f, " {name}={value:?}"),
            false => write!(f, " {name}={value}"),
        })
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => drop(self.values.insert(name.to_owned(), value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
