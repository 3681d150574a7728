//! What a number of durations have in common.

use std::time::Duration;

/// Percentiles by nearest rank; the median of an even number lies between the middle two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// The shortest.
    pub min: Duration,
    /// Half of them are no longer.
    pub median: Duration,
    /// 95 of 100 are no longer.
    pub p95: Duration,
    /// 99 of 100 are no longer.
    pub p99: Duration,
}

impl Distribution {
    /// The distribution of `times`.
    ///
    /// # Panics
    /// When there is none.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let count = times.len();
        let rank = |percent: usize| times[(percent * count).div_ceil(100) - 1];
        Self {
            min: times[0],
            median: (times[(count - 1) / 2] + times[count / 2]) / 2,
            p95: rank(95),
            p99: rank(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let times =
            |count: u64| Distribution::of((1..=count).rev().map(Duration::from_secs).collect());
        let seconds = |s: f64| Duration::from_secs_f64(s);
        let of = |min, median, p95, p99| Distribution {
            min: seconds(min),
            median: seconds(median),
            p95: seconds(p95),
            p99: seconds(p99),
        };
        assert_eq!(times(1), of(1.0, 1.0, 1.0, 1.0));
        assert_eq!(times(20), of(1.0, 10.5, 19.0, 20.0));
        assert_eq!(times(100), of(1.0, 50.5, 95.0, 99.0));
    }
}
