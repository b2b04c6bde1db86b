//! PTX as text, wherever it lies in a file: kernels that the driver compiles are strings of the program.

use std::collections::BTreeSet;

/// Targets and language versions of all PTX texts in `bytes`. A text starts with `.version`, and its `.target`
/// follows within a few lines.
pub fn scan(bytes: &[u8]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let mut rest = bytes;
    while let Some(place) = position(rest, b"\n.target sm_") {
        let before = &rest[place.saturating_sub(400)..place];
        let after = &rest[place + b"\n.target ".len()..];
        let target = word(after);
        if let Some(version) = last_version(before)
            && target.len() > "sm_".len()
        {
            found.insert((target, version));
        }
        rest = after;
    }
    found
}

/// The language version nearest to the end of `bytes`.
fn last_version(bytes: &[u8]) -> Option<String> {
    let key = b".version ";
    let place = bytes.windows(key.len()).rposition(|window| window == key)?;
    let version = word(&bytes[place + key.len()..]);
    version.starts_with(|first: char| first.is_ascii_digit()).then_some(version)
}

fn position(bytes: &[u8], key: &[u8]) -> Option<usize> {
    bytes.windows(key.len()).position(|window| window == key)
}

/// Letters, digits, dots and underscores up to the first other byte.
fn word(bytes: &[u8]) -> String {
    let part = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    bytes.iter().take(24).take_while(part).map(|&byte| char::from(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::scan;

    #[test]
    fn only_texts_with_a_version_and_a_target_count() {
        let module = |version, target| {
            format!("//\n// PTX\n\n.version {version}\n.target {target}\n.address_size 64\n\0")
        };
        let text = [
            "noise \n.target sm_10\0".to_owned(),
            module("9.0", "sm_80"),
            module("9.0", "sm_80"),
            "see .target sm_75 in the manual".to_owned(),
            module("8.8", "sm_90a"),
        ]
        .concat();
        let found: Vec<_> = scan(text.as_bytes()).into_iter().collect();
        assert_eq!(found, [("sm_80".into(), "9.0".into()), ("sm_90a".into(), "8.8".into())]);
        assert!(scan(b"").is_empty());
    }
}
