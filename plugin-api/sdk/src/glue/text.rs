//! Text into memory the host lent.

/// Copies as much as fits, cut at a character boundary; returns the bytes written.
pub(crate) fn write_text(text: &str, lent: &mut [u8]) -> u64 {
    let len = text.floor_char_boundary(lent.len().min(text.len()));
    lent[..len].copy_from_slice(&text.as_bytes()[..len]);
    len as u64
}
