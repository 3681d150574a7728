//! What was made, on stdout: a table for people, JSON lines for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use vggd::manifest::{Manifest, Variant};
use vggd::measure::Measurement;
use vggd_models::adapt::{ClassEstimate, Estimate, Outcome};
use vggd_models::evaluate::{Evaluation, Share};
use vggd_models::fetch::Fetched;

/// One line per variant, then the folder.
pub(crate) fn table(manifest: &Manifest, out: &Path) -> io::Result<()> {
    let header = ["variant", "input", "parameters", "MACs", "size"].map(str::to_owned);
    aligned(&[header].into_iter().chain(manifest.variants.iter().map(row)).collect::<Vec<_>>())?;
    writeln!(io::stdout(), "\n{}", out.display())
}

/// A set for own classes, and what to expect of it.
pub(crate) fn adapted(outcome: &Outcome, out: &Path) -> io::Result<()> {
    let Estimate { photos, top1, interval: [low, high], classes } = &outcome.estimate;
    let mut rows = vec![["class", "photos", "recognised"].map(str::to_owned)];
    for ClassEstimate { label, photos, right } in classes {
        let share = 100.0 * *right as f64 / *photos as f64;
        rows.push([label.clone(), photos.to_string(), format!("{right}  {share:3.0} %")]);
    }
    aligned(&rows)?;
    writeln!(
        io::stdout(),
        "\n{:.1} % of {photos} photos were recognised by classifiers fitted without them (95 % \
         interval {:.1} to {:.1} %)\n",
        100.0 * top1,
        100.0 * low,
        100.0 * high
    )?;
    table(&outcome.manifest, out)
}

/// What variants are worth, one line each.
pub(crate) fn evaluations(evaluations: &[Evaluation]) -> io::Result<()> {
    let Some(first) = evaluations.first() else { return Ok(()) };
    let header = [
        "variant",
        "input",
        "top-1",
        "top-5",
        "agrees",
        "KL",
        "parameters",
        "MACs",
        "size",
        "latency",
        "load",
        "memory",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    for evaluation in evaluations {
        let measured = |text: fn(&Measurement) -> String| {
            evaluation.measured.as_ref().map_or("-".to_owned(), text)
        };
        rows.push([
            evaluation.variant.clone(),
            format!("{0} x {0}", evaluation.side),
            share(evaluation.top1),
            share(evaluation.top5),
            format!("{:.1} %", 100.0 * evaluation.agreement),
            format!("{:.4}", evaluation.divergence),
            format!("{:.1} M", evaluation.parameters as f64 / 1e6),
            format!("{:.2} G", evaluation.macs as f64 / 1e9),
            format!("{:.1} MB", evaluation.bytes as f64 / 1e6),
            measured(|m| format!("{:.1} ms", m.median_ms)),
            measured(|m| format!("{:.0} ms", m.load_ms)),
            measured(|m| format!("{} MiB", m.peak_rss_mb)),
        ]);
    }
    aligned(&rows)?;
    let Evaluation { photos, labelled, .. } = first;
    writeln!(
        io::stdout(),
        "\n{photos} photos, {labelled} with a label; in brackets what the \
        baseline's share is exceeded by on the same photos, with its 95 % interval"
    )
}

fn share(share: Option<Share>) -> String {
    match share {
        None => "-".to_owned(),
        Some(Share { share, difference: 0.0, interval: 0.0 }) => format!("{:.1} %", 100.0 * share),
        Some(Share { share, difference, interval }) => {
            format!("{:.1} % ({:+.1} ± {:.1})", 100.0 * share, 100.0 * difference, 100.0 * interval)
        }
    }
}

/// Columns, the first two to the left, the others to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> io::Result<()> {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut stdout = io::stdout().lock();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        writeln!(stdout, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// One object per line.
pub(crate) fn json(objects: &[impl Serialize]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for object in objects {
        serde_json::to_writer(&mut stdout, object)?;
        writeln!(stdout)?;
    }
    Ok(())
}

/// A file that is there.
pub(crate) fn fetched(fetched: &Fetched, json: bool) -> io::Result<()> {
    let Fetched { path, bytes, sha256, already } = fetched;
    let path = path.display();
    let mut stdout = io::stdout().lock();
    if json {
        let path = path.to_string();
        serde_json::to_writer(&mut stdout, &FetchedLine { path, bytes: *bytes, sha256 })?;
        return writeln!(stdout);
    }
    let note = if *already { "  (was there already)" } else { "" };
    writeln!(stdout, "{path}  {:.1} MB  SHA-256 {sha256}{note}", *bytes as f64 / 1e6)
}

/// [`Fetched`] as a line of JSON.
#[derive(Serialize)]
struct FetchedLine<'a> {
    path: String,
    bytes: u64,
    sha256: &'a str,
}

fn row(variant: &Variant) -> [String; 5] {
    [
        variant.name.clone(),
        format!("{0} x {0}", variant.side()),
        format!("{:.1} M", variant.parameters as f64 / 1e6),
        format!("{:.2} G", variant.macs as f64 / 1e9),
        format!("{:.1} MB", variant.bytes as f64 / 1e6),
    ]
}
