//! Response headers that tell a client how much it may still ask for, in its dialect.

use crate::anthropic::models::rfc3339;
use crate::error::Dialect;

/// What is left of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The whole of it.
    pub limit: u64,
    /// What is left.
    pub remaining: u64,
    /// Until it is whole again.
    pub reset_ms: u64,
}

/// The limits that apply to a key. Those that do not exist are not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests.
    pub requests: Option<Window>,
    /// Tokens read and generated together.
    pub tokens: Option<Window>,
    /// Tokens read (Anthropic dialect only).
    pub input_tokens: Option<Window>,
    /// Tokens generated (Anthropic dialect only).
    pub output_tokens: Option<Window>,
}

impl RateLimits {
    /// The headers; `now` is in seconds since 1970.
    pub fn headers(&self, dialect: Dialect, now: u64) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        let mut tell = |name: &str, window: Option<Window>| {
            let Some(Window { limit, remaining, reset_ms }) = window else { return };
            let values = match dialect {
                Dialect::Anthropic => {
                    let prefix = format!("anthropic-ratelimit-{name}");
                    let reset = rfc3339(now + reset_ms.div_ceil(1000));
                    [
                        (format!("{prefix}-limit"), limit.to_string()),
                        (format!("{prefix}-remaining"), remaining.to_string()),
                        (format!("{prefix}-reset"), reset),
                    ]
                }
                Dialect::OpenAi => [
                    (format!("x-ratelimit-limit-{name}"), limit.to_string()),
                    (format!("x-ratelimit-remaining-{name}"), remaining.to_string()),
                    (format!("x-ratelimit-reset-{name}"), duration(reset_ms)),
                ],
            };
            headers.extend(values);
        };
        tell("requests", self.requests);
        tell("tokens", self.tokens);
        if dialect == Dialect::Anthropic {
            tell("input-tokens", self.input_tokens);
            tell("output-tokens", self.output_tokens);
        }
        headers
    }
}

/// `6m0s`, `1.5s`, `20ms`: as OpenAI writes durations.
fn duration(milliseconds: u64) -> String {
    let (minutes, rest_ms) = (milliseconds / 60_000, milliseconds % 60_000);
    match (minutes, rest_ms) {
        (0, ms) if ms < 1000 => format!("{ms}ms"),
        (0, ms) => format!("{}s", ms as f64 / 1000.0),
        (minutes, ms) => format!("{minutes}m{}s", ms as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_names_and_clock() {
        let limits = RateLimits {
            requests: Some(Window { limit: 60, remaining: 59, reset_ms: 360_000 }),
            input_tokens: Some(Window { limit: 5, remaining: 0, reset_ms: 1_500 }),
            ..RateLimits::default()
        };
        let written = |dialect| {
            let headers = limits.headers(dialect, 1_795_284_000);
            headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
        };
        assert_eq!(
            written(Dialect::OpenAi),
            [
                "x-ratelimit-limit-requests: 60",
                "x-ratelimit-remaining-requests: 59",
                "x-ratelimit-reset-requests: 6m0s"
            ]
        );
        assert_eq!(
            written(Dialect::Anthropic),
            [
                "anthropic-ratelimit-requests-limit: 60",
                "anthropic-ratelimit-requests-remaining: 59",
                "anthropic-ratelimit-requests-reset: 2026-11-21T18:06:00Z",
                "anthropic-ratelimit-input-tokens-limit: 5",
                "anthropic-ratelimit-input-tokens-remaining: 0",
                "anthropic-ratelimit-input-tokens-reset: 2026-11-21T18:00:02Z",
            ]
        );
        for (milliseconds, text) in [(0, "0ms"), (20, "20ms"), (1_500, "1.5s"), (61_000, "1m1s")] {
            assert_eq!(duration(milliseconds), text);
        }
    }
}
