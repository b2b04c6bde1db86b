//! Going on with an answer that another node began and did not live to finish.
//!
//! A gateway asks for the token log with [`LOG_HEADER`] and the seed that is to be used where the request
//! names none. The node says that it does with the same header, and writes the tokens of each event before
//! it, as comments of the stream ([`token_comment`]). With those, the seed and the number of events that the
//! client has, any other node with the same model goes on exactly there: `POST` [`PATH`].

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The route.
pub const PATH: &str = "/continue";
/// Asks for the token log; its value is a seed (`u64`, decimal). In the answer: the log is written.
pub const LOG_HEADER: &str = "x-cortex-token-log";
/// What a comment of the token log begins with.
const MARK: &str = "tokens ";

/// What is to be gone on with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinueRequest {
    /// The chat request as the first node got it; a stream, one answer, no log probabilities.
    pub request: Value,
    /// The seed, where the request names none.
    pub seed: u64,
    /// Tokens the first node is known to have said.
    pub emitted: Vec<u32>,
    /// Events of the answer the client has; they are not said again.
    pub told: u64,
    /// Id of the answer, as the first node called it.
    pub id: String,
    /// When the first node began it, in seconds since 1970.
    pub created: u64,
}

/// The text of a comment that logs tokens.
pub fn token_comment(tokens: &[u32]) -> String {
    let mut text = String::from(MARK);
    for (place, token) in tokens.iter().enumerate() {
        let _ = write!(text, "{}{token}", if place == 0 { "" } else { "," });
    }
    text
}

/// The tokens a line of a stream logs; none for a line that does something else.
pub fn logged_tokens(line: &[u8]) -> Option<Vec<u32>> {
    let text = std::str::from_utf8(line.strip_prefix(b":")?).ok()?;
    let list = text.trim().strip_prefix(MARK)?;
    list.split(',').map(|token| token.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_read() {
        let mut line = Vec::new();
        crate::sse::encode::comment(&mut line, &token_comment(&[5, 70_000, 1]));
        assert_eq!(logged_tokens(line.trim_ascii_end()), Some(vec![5, 70_000, 1]));
        for other in ["data: tokens 1", ": working", ": tokens", ": tokens 1,x", ""] {
            assert_eq!(logged_tokens(other.as_bytes()), None, "{other}");
        }
    }
}
