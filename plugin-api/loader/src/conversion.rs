//! The plugin's borrowed text and lists, copied into the host's own memory.

use plugin_abi::{Slice, Str};

/// Copies text.
///
/// # Safety
/// `text` must be valid while this runs.
pub(crate) unsafe fn owned(text: Str) -> Result<String, String> {
    // SAFETY: the caller vouches for it.
    unsafe { text.as_str() }
        .map(str::to_owned)
        .map_err(|_| "it describes itself with text that is not UTF-8".into())
}

/// Copies a list of texts.
///
/// # Safety
/// The list and its texts must be valid while this runs.
pub(crate) unsafe fn owned_list(list: Slice<Str>) -> Result<Vec<String>, String> {
    // SAFETY: the caller vouches for it.
    let texts = unsafe { list.as_slice() };
    // SAFETY: as above.
    texts.iter().map(|text| unsafe { owned(*text) }).collect()
}
