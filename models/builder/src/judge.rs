//! How alike the answers of two networks are, and how right: pure arithmetic on logits.

/// Probabilities of logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().fold(f32::MIN, |a, b| a.max(*b));
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Mean Kullback-Leibler divergence, in nats, of the answers `found` from the answers `expected`;
/// both are rows of `classes` logits.
///
/// # Panics
/// If there are not as many of one as of the other.
pub fn divergence(expected: &[f32], found: &[f32], classes: usize) -> f64 {
    assert_eq!(expected.len(), found.len());
    let rows = expected.len() / classes;
    let of = |(expected, found)| -> f64 {
        let (expected, found) = (softmax(expected), softmax(found));
        (expected.iter().zip(&found))
            .filter(|(p, _)| **p > 0.0)
            .map(|(p, q)| p * (p / q.max(f64::MIN_POSITIVE)).ln())
            .sum()
    };
    expected.chunks(classes).zip(found.chunks(classes)).map(of).sum::<f64>() / rows.max(1) as f64
}

/// How many logits are larger than that of `class`: 0 when it is the first answer.
pub fn rank(logits: &[f32], class: usize) -> usize {
    let own = logits[class];
    logits.iter().enumerate().filter(|&(i, l)| *l > own || (*l == own && i < class)).count()
}

/// The first answer.
pub fn first(logits: &[f32]) -> usize {
    (0..logits.len()).find(|&class| rank(logits, class) == 0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_the_same_and_known_for_a_coin() {
        let logits = [1.0, 2.0, -1.0, 0.5];
        assert!(divergence(&logits, &logits, 2).abs() < 1e-12);
        let shifted = logits.map(|logit| logit + 100.0);
        assert!(divergence(&logits, &shifted, 4).abs() < 1e-6);
        let (fair, loaded) = ([0.0, 0.0], [3f32.ln(), 0.0]);
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((divergence(&fair, &loaded, 2) - expected).abs() < 1e-6);
    }

    #[test]
    fn ranks_count_what_is_before() {
        let logits = [0.1, 0.7, 0.3, 0.7];
        assert_eq!((0..4).map(|c| rank(&logits, c)).collect::<Vec<_>>(), [3, 0, 2, 1]);
        assert_eq!(first(&logits), 1);
    }
}
