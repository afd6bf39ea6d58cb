//! What is measured, and how its times are told: `peer/case.py`.

use serde::{Deserialize, Serialize};

/// The memory of either side, or that of one transfer where it is bigger.
pub const ARENA_BYTES: usize = 256 << 20;

/// One size at one cadence.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Case {
    /// Bytes of a transfer.
    pub size: usize,
    /// The pause between the end of a transfer and the begin of the next; 0 is back to back.
    pub gap_us: f64,
    /// Transfers that count.
    pub iterations: usize,
    /// Transfers before those that count.
    pub warm_up: usize,
    /// How many are under way at the same time.
    pub tasks: usize,
    /// Ranges of one transfer, of equal size and not next to each other.
    pub blocks: usize,
    /// Whether the memory has huge pages.
    pub huge: bool,
}

impl Case {
    /// How many exposures the owner holds at a time, as many as in the other implementations.
    #[must_use]
    pub fn batch(&self) -> usize {
        let most = (ARENA_BYTES / self.size).max(1);
        let wanted = (4 * self.tasks).max(25).min(self.iterations).min(most);
        self.tasks.max(wanted)
    }
}

/// What a reader asks its owner for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Request {
    /// The case.
    #[serde(flatten)]
    pub case: Case,
    /// How many exposures.
    pub count: usize,
}

/// One side's times, in microseconds.
#[derive(Debug, Serialize)]
pub struct Summary {
    median: f64,
    p10: f64,
    p90: f64,
    p99: f64,
    least: f64,
    most: f64,
}

impl Summary {
    /// Describes times from `begun` to `ended`, which are nanoseconds.
    #[must_use]
    pub fn since(begun: &[u64], ended: &[u64]) -> Self {
        assert_eq!(begun.len(), ended.len());
        let times = begun
            .iter()
            .zip(ended)
            .map(|(begin, end)| (end - begin) as f64 / 1000.0);
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        Self {
            median: quantile(&times, 0.5),
            p10: quantile(&times, 0.1),
            p90: quantile(&times, 0.9),
            p99: quantile(&times, 0.99),
            least: times[0],
            most: times[times.len() - 1],
        }
    }
}

/// As Python's `statistics.quantiles(method="inclusive")`: between two values, a straight line.
fn quantile(ordered: &[f64], share: f64) -> f64 {
    let place = share * (ordered.len() - 1) as f64;
    let below = ordered[place.floor() as usize];
    let above = ordered[place.ceil() as usize];
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::{Case, Summary};

    /// The same figures come out of `peer/case.py`'s `summary`.
    #[test]
    fn times_are_told_as_in_python() {
        let ended: Vec<u64> = [5, 1, 2, 4, 10].iter().map(|time| time * 1000).collect();
        let summary = Summary::since(&[0; 5], &ended);
        let Summary { median, p10, p90, .. } = summary;
        assert_eq!((median, summary.least, summary.most), (4.0, 1.0, 10.0));
        assert!((p10 - 1.4).abs() < 1e-9 && (p90 - 8.0).abs() < 1e-9 && (summary.p99 - 9.8).abs() < 1e-9);
    }

    #[test]
    fn batches_are_those_of_python() {
        let case = |size, iterations, tasks| Case {
            size,
            gap_us: 0.0,
            iterations,
            warm_up: 1,
            tasks,
            blocks: 1,
            huge: false,
        };
        assert_eq!(case(4 << 10, 300, 1).batch(), 25);
        assert_eq!(case(64 << 20, 10, 1).batch(), 4);
        assert_eq!(case(4 << 10, 8, 16).batch(), 16);
        assert_eq!(case(4 << 10, 1000, 64).batch(), 256);
        assert_eq!(case(1 << 30, 10, 2).batch(), 2);
    }
}
