//! What was compared and what was out of its limit.

use std::fmt;

/// How far two tensors are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Largest absolute difference.
    pub max: f64,
    /// Root mean square of the differences.
    pub rms: f64,
}

impl Distance {
    /// Between what was computed and what is expected. Anything not finite, and any difference in size, is infinitely far.
    pub fn between(got: &[f32], expected: &[f32]) -> Self {
        if got.len() != expected.len() || got.iter().any(|x| !x.is_finite()) {
            return Self { max: f64::INFINITY, rms: f64::INFINITY };
        }
        let differences = got.iter().zip(expected).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs());
        let (max, squares) = differences.fold((0f64, 0f64), |(max, sum), d| (max.max(d), sum + d * d));
        Self { max, rms: (squares / got.len().max(1) as f64).sqrt() }
    }
}

/// The outcome of many comparisons.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Comparisons made.
    pub compared: usize,
    /// One sentence per comparison that failed.
    pub failures: Vec<String>,
    /// The closest call, as a share of its limit, and where.
    pub closest: Option<(f64, String)>,
}

impl Report {
    /// Records that `stage` is `value` where `limit` is allowed.
    pub fn at_most(&mut self, stage: &str, value: f64, limit: f64) {
        self.compared += 1;
        if value.is_nan() || value > limit {
            self.failures.push(format!("{stage}: {value:.3e} where {limit:.3e} is allowed"));
        }
        let share = value / limit;
        if self.closest.as_ref().is_none_or(|(closest, _)| share > *closest) {
            self.closest = Some((share, stage.to_string()));
        }
    }

    /// Records whether `stage` holds.
    pub fn holds(&mut self, stage: &str, holds: bool, otherwise: impl FnOnce() -> String) {
        self.compared += 1;
        if !holds {
            self.failures.push(format!("{stage}: {}", otherwise()));
        }
    }

    /// Records the largest difference of two tensors.
    pub fn tensors(&mut self, stage: &str, got: &[f32], expected: &[f32], limit: f64) {
        self.at_most(stage, Distance::between(got, expected).max, limit);
    }

    /// Adds another report to this one.
    pub fn extend(&mut self, other: Report) {
        self.compared += other.compared;
        self.failures.extend(other.failures);
        if let Some((share, stage)) = other.closest
            && self.closest.as_ref().is_none_or(|(closest, _)| share > *closest)
        {
            self.closest = Some((share, stage));
        }
    }

    /// Fails the test unless something was compared and nothing failed.
    pub fn assert_clean(&self, what: &str) {
        assert!(self.compared > 0, "{what}: nothing was compared");
        assert!(self.failures.is_empty(), "{what}\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of {} comparisons failed", self.failures.len(), self.compared)?;
        for failure in self.failures.iter().take(40) {
            writeln!(f, "  {failure}")?;
        }
        match &self.closest {
            Some((share, stage)) => write!(f, "  closest to its limit: {stage} at {:.0} %", share * 100.0),
            None => Ok(()),
        }
    }
}
