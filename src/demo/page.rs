//! What the demo prints: lines and a table for people, or the messages as they are.

use std::env;
use std::io::{self, Write, stdout};
use std::path::PathBuf;

use vggd::event::Class;
use vggd::manifest::{ModelSet, Variant};

use super::stage::TOPIC;
use super::subscriber::Message;
use super::{Answer, Failure, name};
use crate::commands::print_table;

/// How long a bar of 100 % is, and how much of names and labels is shown.
const BAR: usize = 12;
const LONGEST_NAME: usize = 24;
const LONGEST_LABEL: usize = 24;

/// What is printed about one set and some photos.
pub(super) struct Page<'a> {
    json: bool,
    set: &'a ModelSet,
    name_width: usize,
}

impl<'a> Page<'a> {
    /// A page for people, or for programs if `json`.
    pub(super) fn new(json: bool, set: &'a ModelSet, photos: &[PathBuf]) -> Self {
        let widths = photos.iter().map(|photo| name(photo).chars().count());
        Self { json, set, name_width: widths.max().unwrap_or(0).min(LONGEST_NAME) }
    }

    /// What is going to be seen: so many photos of those that were found.
    pub(super) fn opening(&self, photos: usize, found: usize, port: u16) -> io::Result<()> {
        let photos = match photos == found {
            true => count(photos, "photo"),
            false => format!("the first {photos} of {found} photos"),
        };
        self.print(&format!(
            "vggd demo: {photos}, {} of {}\n\n\
             Each photo goes into a folder that the daemon watches; the daemon publishes its answer\n\
             over MQTT to a broker at 127.0.0.1:{port}, and a subscriber to {TOPIC}/prediction\n\
             prints it here as it arrives.",
            count(self.set.manifest.variants.len(), "variant"),
            self.set.manifest.name
        ))
    }

    /// Which variant is configured now.
    pub(super) fn heading(&self, variant: &Variant) -> io::Result<()> {
        self.print(&format!("\nmodel.variant = \"{}\": {}", variant.name, variant.description))
    }

    /// A message on `prediction`, while `configured` is the variant.
    pub(super) fn answer(
        &self,
        message: &Message,
        answer: &Answer,
        configured: &Variant,
    ) -> io::Result<()> {
        if self.json {
            return raw(message);
        }
        let width = self.name_width;
        let file = fit(&answer.file, width);
        let (label, probability) =
            answer.top.first().map_or(("", 0.0), |class| (short(class), class.probability));
        let label = fit(label, LONGEST_LABEL);
        let full = (probability * BAR as f64).round() as usize;
        let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR - full.min(BAR)));
        let (percent, total) = (probability * 100.0, answer.timings_ms.total);
        let variant = match &answer.variant {
            variant if *variant == configured.name => variant.clone(),
            variant => format!("{variant}, until {} is loaded", configured.name),
        };
        self.print(&format!(
            "  {file:<width$}  {label:<LONGEST_LABEL$}  {bar} {percent:>3.0} %  {total:>7.1} ms  \
             {variant}"
        ))
    }

    /// A message on `error`.
    pub(super) fn failure(&self, message: &Message, failure: &Failure) -> io::Result<()> {
        if self.json {
            return raw(message);
        }
        let (width, file) = (self.name_width, failure.file.as_deref().unwrap_or_default());
        self.print(&format!("  {:<width$}  {}", fit(file, width), failure.message))
    }

    /// What each variant took and how often it gave the baseline's answer, and what to do next.
    pub(super) fn closing(&self, answers: &[Vec<Option<Answer>>]) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let baseline = &answers[0];
        let variants = &self.set.manifest.variants;
        let agrees = format!("agrees with {}", variants[0].name);
        let titles = ["variant", "median", "speed-up", &agrees];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        for (variant, own) in variants.iter().zip(answers) {
            let pairs = own.iter().zip(baseline).filter_map(|(a, b)| a.as_ref().zip(b.as_ref()));
            let same: Vec<bool> = pairs.map(|(a, b)| first(a) == first(b)).collect();
            let agreed = same.iter().filter(|same| **same).count();
            rows.push(vec![
                variant.name.clone(),
                format!("{:.1} ms", median(own)),
                format!("{:.2} x", median(baseline) / median(own)),
                format!("{agreed} of {}", same.len()),
            ]);
        }
        self.print("")?;
        print_table(&rows, &[1, 2]);
        let program = env::args_os().next().map_or("vggd".into(), PathBuf::from);
        self.print(&format!(
            "\nNext, with a photo of yours: {} compare --models {} PHOTO",
            program.display(),
            self.set.directory.display()
        ))
    }

    fn print(&self, text: &str) -> io::Result<()> {
        match self.json {
            true => Ok(()),
            false => writeln!(stdout().lock(), "{text}"),
        }
    }
}

fn raw(message: &Message) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(&message.payload)?;
    out.write_all(b"\n")
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The likeliest class.
fn first(answer: &Answer) -> Option<usize> {
    answer.top.first().map(|class| class.class)
}

/// The first of a label's names.
fn short(class: &Class) -> &str {
    class.label.split(',').next().unwrap_or_default()
}

/// As much of a text as fits.
fn fit(text: &str, width: usize) -> String {
    match text.chars().count() <= width {
        true => text.to_owned(),
        false => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// The median time from a photo's being found to its answer, in milliseconds.
fn median(answers: &[Option<Answer>]) -> f64 {
    let mut times: Vec<f64> =
        answers.iter().flatten().map(|answer| answer.timings_ms.total).collect();
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() % 2 {
        _ if times.is_empty() => f64::NAN,
        0 => (times[middle - 1] + times[middle]) / 2.0,
        _ => times[middle],
    }
}
