//! Stable numbers for names, the gateway's clock, and identifiers of requests.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A number for a name, the same in every process and version: FNV-1a with a final mix.
pub fn stable_hash(text: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

/// Spreads the bits of a number over the whole word.
pub fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Milliseconds since this process began, plus a day: only differences mean anything, and no difference
/// that matters underflows. Never jumps.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 86_400_000
}

/// Milliseconds since 1970, as nodes stamp their figures. May jump.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Where the sequence of random bits stands; each call moves it on by an odd constant and mixes.
static RANDOM: LazyLock<AtomicU64> =
    LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(std::process::id())));

/// Begins random bits anew from a seed, so that a simulation can be repeated.
pub fn seed_random_bits(seed: u64) {
    RANDOM.store(seed, Ordering::Relaxed);
}

/// Random bits: different for each call and each process, good enough to spread load, not to keep secrets.
pub fn random_bits() -> u64 {
    mix(RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
}

/// An identifier such as `req_3f0c…`, 16 hexadecimal digits after the prefix.
pub fn new_id(prefix: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = random_bits();
    let mut id = String::with_capacity(prefix.len() + 16);
    id.push_str(prefix);
    for nibble in (0..16).rev() {
        id.push(DIGITS[(bits >> (nibble * 4)) as usize & 15] as char);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_never_change() {
        // Gateways of different versions agree on homes of conversations only as long as this holds.
        assert_eq!(stable_hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_ne!(stable_hash(b"a"), stable_hash(b"b"));
    }

    #[test]
    fn ids_differ_and_look_alike() {
        let ids: std::collections::BTreeSet<String> = (0..1000).map(|_| new_id("req_")).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 20 && id.starts_with("req_")));
    }
}
