//! A replayed trace as a picture: each frame a point of its variant's colour, against the budget.

use std::fmt::Write;

use super::{Candidate, Outcome};
use crate::simulate::trace::Frame;
use crate::svg::{Axis, escape, text};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 80.0;
const BOTTOM: f64 = 55.0;

/// Colours that people with any kind of sight tell apart (after Okabe and Ito 2008, the yellow darker),
/// and a dark red as the ninth.
const COLOURS: [&str; 9] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#000000",
    "#882255",
];

/// Draws latency over time: a point a frame, the budget as a line; frames far over the budget lie on
/// the upper edge.
pub fn draw(
    title: &str,
    candidates: &[Candidate],
    trace: &[Frame],
    outcomes: &[Outcome],
) -> String {
    let budget = trace.iter().map(|frame| frame.budget_ms).fold(0.0, f64::max);
    let slowest = outcomes.iter().map(|outcome| outcome.total_ms).fold(0.0, f64::max);
    let ceiling = if budget > 0.0 { slowest.min(2.0 * budget) } else { slowest };
    let y = Axis::over([budget, ceiling].into_iter(), true);
    let ceiling = y.ticks().last().unwrap_or(ceiling);
    let x = Axis::over(trace.iter().map(|frame| frame.arrival_ms / 1e3), true);
    let across = |arrival_ms: f64| x.place(arrival_ms / 1e3, LEFT, WIDTH - RIGHT);
    let up = |ms: f64| y.place(ms.min(ceiling), HEIGHT - BOTTOM, TOP);

    let mut svg = String::new();
    let mut line = |text: String| writeln!(svg, "{text}").expect("a string takes everything");
    line(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" role="img">"#
    ));
    line(format!("<title>{}</title>", escape(title)));
    line(format!(r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#));
    line(text(LEFT, 28.0, "start", 17, title));
    for at in y.ticks() {
        let height = up(at);
        line(format!(
            r##"<line x1="{LEFT}" y1="{height:.1}" x2="{:.1}" y2="{height:.1}" stroke="#ddd"/>"##,
            WIDTH - RIGHT
        ));
        line(text(LEFT - 8.0, height + 4.0, "end", 13, &format!("{at}")));
    }
    for at in x.ticks() {
        line(text(across(1e3 * at), HEIGHT - BOTTOM + 20.0, "middle", 13, &format!("{at}")));
    }
    line(text(16.0, TOP - 14.0, "start", 13, "latency, ms"));
    line(text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14.0, "middle", 13, "time, s"));

    let mut at = LEFT;
    for (index, candidate) in candidates.iter().enumerate() {
        let points: String = (outcomes.iter().zip(trace))
            .filter(|(outcome, _)| outcome.variant == candidate.variant)
            .map(|(outcome, frame)| {
                format!("M{:.1} {:.1}h0", across(frame.arrival_ms), up(outcome.total_ms))
            })
            .collect();
        if points.is_empty() {
            continue;
        }
        let colour = COLOURS[index % COLOURS.len()];
        line(format!(
            r#"<path d="{points}" stroke="{colour}" stroke-width="4" stroke-linecap="round"/>"#
        ));
        line(format!(r#"<circle cx="{at:.1}" cy="46" r="5" fill="{colour}"/>"#));
        line(text(at + 10.0, 50.0, "start", 13, &candidate.variant));
        at += 30.0 + 7.5 * candidate.variant.chars().count() as f64;
    }
    if budget > 0.0 {
        let points: Vec<String> = (trace.iter())
            .map(|frame| format!("{:.1},{:.1}", across(frame.arrival_ms), up(frame.budget_ms)))
            .collect();
        line(format!(
            r##"<polyline points="{}" fill="none" stroke="#b00020" stroke-dasharray="6 4"/>"##,
            points.join(" ")
        ));
        line(text(at, 50.0, "start", 13, "- - budget"));
    }
    line("</svg>".to_owned());
    svg
}
