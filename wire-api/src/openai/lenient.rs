//! Reading what other servers write: `null` where a list is meant, an object where a text is.

use serde::{Deserialize, Deserializer};

/// `null` counts as the default.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    de: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(de)?.unwrap_or_default())
}

/// A string; any other shape counts as absent.
pub(crate) fn text_or_nothing<'de, D: Deserializer<'de>>(de: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Text(String),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Option::<Shape>::deserialize(de)? {
        Some(Shape::Text(text)) => Some(text),
        Some(Shape::Other(_)) | None => None,
    })
}
