//! What pictures are drawn with: scales and text, as SVG.

/// A scale with round steps.
pub struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// One that all `values` lie on, and zero if it is to begin there.
    pub fn over(values: impl Iterator<Item = f64>, from_zero: bool) -> Self {
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

    /// The values at its steps.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|i| ((self.low + i as f64 * self.step) * 1e6).round() / 1e6)
    }

    /// Where a value lies, if the axis goes from one coordinate to the other.
    pub fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        let span = (self.high - self.low).max(f64::MIN_POSITIVE);
        from + (value - self.low) / span * (to - from)
    }
}

/// A line of text; `anchor` is `start`, `middle` or `end`.
pub fn text(x: f64, y: f64, anchor: &str, size: u32, content: &str) -> String {
    let content = escape(content);
    format!(
        r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="#222">{content}</text>"##
    )
}

/// `text` without what means something in XML.
pub fn escape(text: &str) -> String {
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
}
