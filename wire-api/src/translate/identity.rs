//! Names and ids that must survive a round trip through a dialect with narrower rules.
//!
//! Everything minted here is a hash of what it replaces: the same call gets the same id in every
//! turn and on every gateway, without anybody remembering it.

use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Longest name of a tool every server accepts.
const TOOL_NAME_LENGTH: usize = 64;
/// Characters of a long name that are kept: with `_` and eight digits it is just short enough.
const TOOL_NAME_KEPT: usize = 55;

/// Names of tools that had to be changed, and what they were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolNames {
    /// As the client knows it, by the name on the wire.
    changed: HashMap<String, String>,
}

impl ToolNames {
    /// The name to send; remembers it if it had to be changed.
    pub fn shorten(&mut self, name: &str) -> String {
        if is_plain(name) && !name.is_empty() && name.len() <= TOOL_NAME_LENGTH {
            return name.to_owned();
        }
        let mut short: String =
            name.chars().take(TOOL_NAME_KEPT).map(|c| if is_plain_character(c) { c } else { '_' }).collect();
        let _ = write!(short, "_{}", &hex_digest(name)[..8]);
        self.changed.entry(short.clone()).or_insert_with(|| name.to_owned());
        short
    }

    /// The name the client knows.
    pub fn restore<'a>(&'a self, name: &'a str) -> &'a str {
        self.changed.get(name).map_or(name, String::as_str)
    }
}

fn is_plain_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}

fn is_plain(text: &str) -> bool {
    text.chars().all(is_plain_character)
}

fn hex_digest(text: &str) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// `length` characters of the digits and letters, from the hash of `text`.
fn base62(text: &str, length: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(length).map(|byte| DIGITS[usize::from(*byte) % DIGITS.len()] as char).collect()
}

/// An id clients of the Anthropic dialect accept: the server's own where it is plain, otherwise
/// `toolu_` and 24 characters of its hash. `place` stands in where the server gave no id.
pub fn tool_use_id(id: &str, place: &str) -> String {
    match id {
        "" => format!("toolu_{}", base62(place, 24)),
        id if is_plain(id) => id.to_owned(),
        id => format!("toolu_{}", base62(id, 24)),
    }
}

/// The id of a message, from the id of the completion it is made of.
pub fn message_id(completion_id: &str) -> String {
    swap_prefix(completion_id, &["chatcmpl-", "cmpl-"], "msg_")
}

/// The id of a completion, from the id of the message it is made of.
pub fn completion_id(message_id: &str) -> String {
    swap_prefix(message_id, &["msg_"], "chatcmpl-")
}

/// The id of a response, from the id of the completion it is made of.
pub fn response_id(completion_id: &str) -> String {
    swap_prefix(completion_id, &["chatcmpl-", "cmpl-"], "resp_")
}

fn swap_prefix(id: &str, prefixes: &[&str], new: &str) -> String {
    let tail = prefixes.iter().find_map(|prefix| id.strip_prefix(prefix)).unwrap_or(id);
    format!("{new}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t24_names_come_back() {
        let long = "x".repeat(65);
        let cases = ["ok_name-1", "with.dot", "käse", long.as_str(), ""];
        let mut names = ToolNames::default();
        for name in cases {
            let short = names.shorten(name);
            assert!(short.len() <= TOOL_NAME_LENGTH && is_plain(&short) && !short.is_empty(), "{short}");
            assert_eq!(names.restore(&short), name);
            assert_eq!(names.shorten(name), short, "the same every time");
        }
        assert_eq!(names.shorten("ok_name-1"), "ok_name-1");
        assert_eq!(names.restore("unknown"), "unknown");
        let twin = "x".repeat(66);
        assert_ne!(names.shorten(&twin), names.shorten(&long));
    }

    #[test]
    fn t43_ids_are_kept_or_minted_for_good() {
        assert_eq!(tool_use_id("call_1-x", "p"), "call_1-x");
        let minted = tool_use_id("functions.f:0", "p");
        assert_eq!(minted.len(), "toolu_".len() + 24);
        assert_eq!(minted, tool_use_id("functions.f:0", "elsewhere"));
        assert_ne!(tool_use_id("", "msg_1/0"), tool_use_id("", "msg_1/1"));
        assert_eq!(message_id("chatcmpl-7"), "msg_7");
        assert_eq!(message_id("7"), "msg_7");
    }
}
