//! Accuracy against latency as a picture: SVG, one point per variant.

use std::fmt::Write;

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

struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from_zero: bool) -> Self {
        let (low, high) = values
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let room = 0.1 * (high - low);
        let low = if from_zero { 0.0 } else { low - room };
        let high = high + room;
        let span = (high - low).max(1e-3);
        let power = 10f64.powf((span / 5.0).log10().floor());
        let round = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = round.into_iter().find(|step| span / step <= 6.0).unwrap_or(10.0 * power);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|i| ((self.low + i as f64 * self.step) * 1e6).round() / 1e6)
    }

    fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        let span = (self.high - self.low).max(f64::MIN_POSITIVE);
        from + (value - self.low) / span * (to - from)
    }
}

fn text(x: f64, y: f64, anchor: &str, size: u32, content: &str) -> String {
    let content = escape(content);
    format!(
        r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="#222">{content}</text>"##
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_steps_and_hold_everything() {
        for (values, from_zero, first, last) in [
            (vec![31.0, 120.0], true, 0.0, 120.0),
            (vec![71.2, 76.0], false, 70.0, 76.0),
            (vec![50.0], false, 50.0, 50.0),
        ] {
            let axis = Axis::over(values.iter().copied(), from_zero);
            let ticks: Vec<f64> = axis.ticks().collect();
            assert!(ticks[0] <= first && *ticks.last().unwrap() >= last, "{ticks:?}");
            assert!(ticks.len() <= 10, "{ticks:?}");
        }
    }

    #[test]
    fn names_cannot_break_the_picture() {
        let svg = draw("a<b & \"c\"", &[]);
        assert!(svg.contains("a&lt;b &amp; &quot;c&quot;"), "{svg}");
        assert!(svg.trim_end().ends_with("</svg>"));
    }
}
