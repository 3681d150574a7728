//! `vggd compare`: every variant on one photo, for people and for programs.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use vggd::compare::{self, Comparing, Described, Step};
use vggd::config::Config;
use vggd::daemon;
use vggd::event::{TOP, Timings};

use super::table::{bad, bar, columns, cut, faint, good, print_blocks, strong, wrap};
use super::{BAR, Progress, print_json, readable};

/// A variant's line with `--json`.
#[derive(Serialize)]
struct Compared<'a> {
    file: String,
    #[serde(flatten)]
    card: &'a Described<'a>,
}

/// Runs every variant on one photo.
pub(crate) fn compare(config: &Config, photo: &Path, runs: u32, json: bool) -> Result<()> {
    let set = daemon::model_set(config)?;
    let picture = &readable(config, photo)?;
    let may = &|_| Ok(());
    let comparing = Comparing { config, set: &set, picture, runs, background: false, may };
    let all = set.manifest.variants.len();
    let (mut cards, mut progress, mut running) = (Vec::new(), Progress::new(), String::new());
    compare::compare(comparing, |step| {
        let done = cards.len();
        match step {
            Step::Next(name) => {
                running = format!("{name} ({} of {all})", done + 1);
                progress.tell(&format!("{running}, loading"), done as f64 / all as f64);
            }
            Step::Ran(count) => {
                let share = (done as f64 + f64::from(count) / f64::from(runs)) / all as f64;
                progress.tell(&format!("{running}, {count} of {runs} runs"), share);
            }
            Step::Card(card) => {
                progress.clear();
                if json {
                    print_json(&Compared { file: photo.display().to_string(), card: &card })?;
                }
                cards.push(card);
            }
            Step::LeftOut(_) => unreachable!("every variant may run"),
        }
        Ok(())
    })?;
    progress.clear();
    if !json {
        let threads = cards[0].card.threads;
        println!("{}: {threads} threads, median of {runs} runs\n", photo.display());
        print(&cards);
    }
    Ok(())
}

/// What was done to each variant, and then their figures and answers side by side.
fn print(cards: &[Described]) {
    let (room, names) = (columns(), cards.iter().map(|it| it.card.variant.chars().count()));
    let indent = names.max().unwrap_or(0).min(room / 3) + 4;
    for Described { card, description, .. } in cards {
        for (at, line) in wrap(description, room.saturating_sub(indent)).into_iter().enumerate() {
            let name = if at == 0 { cut(&card.variant, indent - 4) } else { String::new() };
            let padding = " ".repeat(indent - 2 - name.chars().count());
            anstream::println!("  {}{padding}{line}", strong(&name));
        }
    }
    println!();
    let mut head = [
        "",
        "input",
        "latency",
        "",
        "  decode",
        "  preprocess",
        "  inference",
        "speed-up",
        "load",
        "files",
        "memory",
        "agrees",
        "",
    ]
    .map(faint)
    .to_vec();
    head.extend((1..=TOP).map(|rank| faint(&format!("top {rank}"))));
    let slowest = cards.iter().map(|it| it.card.timings_ms.total).fold(0.0, f64::max);
    let most = room.saturating_sub(20).max(10);
    let column = |Described { card, input, .. }: &Described| {
        let Timings { decode, preprocess, inference, total, .. } = card.timings_ms;
        let mut column = vec![
            strong(&cut(&card.variant, most)),
            format!("{input} x {input}"),
            format!("{total:.1} ms"),
            bar(total / slowest, BAR),
            format!("{decode:.1} ms"),
            format!("{preprocess:.1} ms"),
            format!("{inference:.1} ms"),
            format!("{:.2} x", card.speedup),
            format!("{:.0} ms", card.load_ms),
            format!("{:.1} MB", card.bytes as f64 / 1e6),
            format!("{} MiB", card.rss_mb),
            if card.agrees { good("yes") } else { bad("no") },
            String::new(),
        ];
        column.extend(card.top.iter().map(|class| {
            let label = class.label.split(',').next().unwrap_or_default();
            cut(&format!("{:.1} % {label}", class.probability * 100.0), most)
        }));
        column.resize(head.len(), String::new());
        column
    };
    print_blocks(&head, &cards.iter().map(column).collect::<Vec<_>>(), room);
}
