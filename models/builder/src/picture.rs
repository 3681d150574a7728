//! Accuracy against latency as a picture: SVG, one point per variant.

use std::fmt::Write;

use vggd::svg::{Axis, escape, text};

use crate::evaluate::Evaluation;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 60.0;

/// Draws variants that were measured: accuracy (top-1, or agreement with the baseline where there
/// are no labels) upwards, latency to the right; the area of a point is the size of the files.
pub fn draw(title: &str, evaluations: &[Evaluation]) -> String {
    let has_labels = evaluations.iter().all(|evaluation| evaluation.top1.is_some());
    let upwards = |evaluation: &Evaluation| match evaluation.top1 {
        Some(top1) if has_labels => 100.0 * top1.share,
        _ => 100.0 * evaluation.agreement,
    };
    let points: Vec<Point> = (evaluations.iter())
        .filter_map(|evaluation| {
            Some(Point {
                name: &evaluation.variant,
                x: evaluation.measured.as_ref()?.median_ms,
                y: upwards(evaluation),
                bytes: evaluation.bytes,
            })
        })
        .collect();
    let x = Axis::over(points.iter().map(|point| point.x), true);
    let y = Axis::over(points.iter().map(|point| point.y), false);
    let what = if has_labels { "top-1, %" } else { "agreement with the baseline, %" };

    let mut svg = String::new();
    let mut line = |text: String| writeln!(svg, "{text}").expect("a string takes everything");
    line(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" role="img">"#
    ));
    line(format!("<title>{}</title>", escape(title)));
    line(format!(r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#));
    line(text(LEFT, 28.0, "start", 17, title));
    line(text(LEFT, 48.0, "start", 13, &format!("{what}, upwards; area: size of the files")));
    for at in y.ticks() {
        let height = y.place(at, HEIGHT - BOTTOM, TOP);
        line(format!(
            r##"<line x1="{LEFT}" y1="{height:.1}" x2="{:.1}" y2="{height:.1}" stroke="#ddd"/>"##,
            WIDTH - RIGHT
        ));
        line(text(LEFT - 8.0, height + 4.0, "end", 13, &format!("{at}")));
    }
    for at in x.ticks() {
        let place = x.place(at, LEFT, WIDTH - RIGHT);
        line(format!(
            r##"<line x1="{place:.1}" y1="{TOP}" x2="{place:.1}" y2="{:.1}" stroke="#eee"/>"##,
            HEIGHT - BOTTOM
        ));
        line(text(place, HEIGHT - BOTTOM + 20.0, "middle", 13, &format!("{at}")));
    }
    line(text(
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 16.0,
        "middle",
        13,
        "latency of one inference on this machine, ms",
    ));
    let largest = points.iter().map(|point| point.bytes).max().unwrap_or(1) as f64;
    for point in &points {
        let (cx, cy) =
            (x.place(point.x, LEFT, WIDTH - RIGHT), y.place(point.y, HEIGHT - BOTTOM, TOP));
        let radius = (18.0 * (point.bytes as f64 / largest).sqrt()).max(4.0);
        line(format!(
            r##"<circle cx="{cx:.1}" cy="{cy:.1}" r="{radius:.1}" fill="#2a6fb0" fill-opacity="0.55" stroke="#174a7a"><title>{}: {:.1} ms, {:.1} %, {:.1} MB</title></circle>"##,
            escape(point.name),
            point.x,
            point.y,
            point.bytes as f64 / 1e6
        ));
        let (at, anchor) = match cx > 0.75 * WIDTH {
            true => (cx - radius - 5.0, "end"),
            false => (cx + radius + 5.0, "start"),
        };
        line(text(at, cy + 4.0, anchor, 13, point.name));
    }
    line("</svg>".to_owned());
    svg
}

struct Point<'a> {
    name: &'a str,
    x: f64,
    y: f64,
    bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_picture() {
        let svg = draw("a<b & \"c\"", &[]);
        assert!(svg.contains("a&lt;b &amp; &quot;c&quot;"), "{svg}");
        assert!(svg.trim_end().ends_with("</svg>"));
    }
}
