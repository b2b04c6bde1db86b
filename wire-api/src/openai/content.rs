//! What a message holds: text, or parts of text and images.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, join, mismatch};

/// Content of a message.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// One string.
    Text(String),
    /// Parts in the order given.
    Parts(Vec<ContentPart>),
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum ContentPart {
    /// Text.
    Text(String),
    /// An image, by data URI or by address.
    Image(ImageUrl),
    /// A document. No neuron reads it; translators carry it.
    File(FilePart),
}

/// `image_url` of a part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageUrl {
    /// `data:image/png;base64,…`, or an http(s) address.
    pub url: String,
    /// `low`, `high` or `auto`: a hint that changes cost elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// `file` of a part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilePart {
    /// Name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// `data:application/pdf;base64,…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_data: Option<String>,
    /// An id in somebody's file store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_id: Option<String>,
}

/// A data URI, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataUri<'a> {
    /// `image/png`; parameters such as a character set are left out.
    pub media_type: &'a str,
    /// The data as written.
    pub payload: &'a str,
    /// Whether the payload is base64.
    pub base64: bool,
}

impl<'a> DataUri<'a> {
    /// Takes a `data:` URI apart; `None` if it is none.
    pub fn parse(uri: &'a str) -> Option<Self> {
        let rest = uri.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:")).map(|_| &uri[5..])?;
        let (header, payload) = rest.split_once(',')?;
        let base64 = header.rsplit(';').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
        let media_type = header.split(';').next().unwrap_or("").trim();
        Some(Self { media_type, payload, base64 })
    }

    /// The bytes of a base64 payload; line breaks and missing padding are forgiven.
    ///
    /// # Errors
    ///
    /// One sentence, if it is no base64.
    pub fn decode(&self) -> Result<Vec<u8>, String> {
        if !self.base64 {
            return Err("the data URI must be base64".to_owned());
        }
        let engine = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let clean = self.payload.bytes().any(|byte| byte.is_ascii_whitespace());
        let decoded = if clean {
            let payload: Vec<u8> = self.payload.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            engine.decode(payload)
        } else {
            engine.decode(self.payload)
        };
        decoded.map_err(|error| format!("the data URI is not valid base64: {error}"))
    }
}

impl ImageUrl {
    /// The data URI, if the image travels inside the request.
    pub fn data_uri(&self) -> Option<DataUri<'_>> {
        DataUri::parse(&self.url)
    }
}

impl Serialize for ContentPart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => Tagged { r#type: "text", key: "text", value: text }.serialize(serializer),
            Self::Image(image) => {
                Tagged { r#type: "image_url", key: "image_url", value: image }.serialize(serializer)
            }
            Self::File(file) => Tagged { r#type: "file", key: "file", value: file }.serialize(serializer),
        }
    }
}

/// `{"type": kind, kind: value}`.
struct Tagged<'a, T> {
    r#type: &'static str,
    key: &'static str,
    value: &'a T,
}

impl<T: Serialize> Serialize for Tagged<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", self.r#type)?;
        map.serialize_entry(self.key, self.value)?;
        map.end()
    }
}

impl Content {
    /// All text, parts joined by `separator`; images leave no trace.
    pub fn text(&self, separator: &str) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => {
                let texts: Vec<&str> = parts.iter().filter_map(ContentPart::as_text).collect();
                texts.join(separator)
            }
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Parts(parts) => parts.iter().all(|part| part.as_text() == Some("")),
        }
    }

    /// The images, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageUrl> {
        let parts = match self {
            Self::Text(_) => &[][..],
            Self::Parts(parts) => parts,
        };
        parts.iter().filter_map(|part| match part {
            ContentPart::Image(image) => Some(image),
            _ => None,
        })
    }

    /// The parts; a string is one part.
    pub fn into_parts(self) -> Vec<ContentPart> {
        match self {
            Self::Text(text) => vec![ContentPart::Text(text)],
            Self::Parts(parts) => parts,
        }
    }

    /// From parts, as a string where there is exactly one text.
    pub fn from_parts(mut parts: Vec<ContentPart>) -> Self {
        match parts.as_mut_slice() {
            [ContentPart::Text(text)] => Self::Text(std::mem::take(text)),
            _ => Self::Parts(parts),
        }
    }

    /// Reads a string or a list of parts.
    pub(crate) fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) => {
                let mut parts = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    parts.push(ContentPart::read(&join(path, index), item)?);
                }
                Ok(Self::Parts(parts))
            }
            other => Err(mismatch(path, "a string or a list of parts", &other)),
        }
    }
}

impl ContentPart {
    /// The text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        if let Value::String(text) = value {
            return Ok(Self::Text(text));
        }
        let mut part = Fields::from_value(path, value)?;
        let kind = part.required_string("type")?;
        match kind.as_str() {
            // Three spellings that clients use for the same thing.
            "text" | "input_text" | "output_text" => Ok(Self::Text(part.required_string("text")?)),
            "refusal" => Ok(Self::Text(part.required_string("refusal")?)),
            "image_url" | "input_image" => Ok(Self::Image(read_image(&mut part)?)),
            "file" => {
                let mut file =
                    part.nested("file")?.ok_or_else(|| crate::fields::missing(&part.at("file")))?;
                Ok(Self::File(FilePart {
                    filename: file.string("filename")?,
                    file_data: file.string("file_data")?,
                    file_id: file.string("file_id")?,
                }))
            }
            other => {
                let message = format!("'{other}' parts are not supported; use text or image_url");
                Err(ApiError::invalid(join(path, "type"), message).with_code("unsupported_content_type"))
            }
        }
    }
}

fn read_image(part: &mut Fields) -> Result<ImageUrl, ApiError> {
    let path = part.at("image_url");
    let outer_detail = part.label("detail");
    let image = match part.take("image_url") {
        None => return Err(crate::fields::missing(&path)),
        Some(Value::String(url)) => ImageUrl { url, detail: outer_detail },
        Some(value) => {
            let mut image = Fields::from_value(path.as_str(), value)?;
            ImageUrl { url: image.required_string("url")?, detail: image.label("detail").or(outer_detail) }
        }
    };
    let url = image.url.as_str();
    let scheme_is =
        |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if !(scheme_is("data:") || scheme_is("http://") || scheme_is("https://")) {
        let message = "an image must be a data: URI or an http(s) address";
        return Err(ApiError::invalid(join(&path, "url"), message));
    }
    if scheme_is("data:") && image.data_uri().is_none() {
        return Err(ApiError::invalid(join(&path, "url"), "the data URI has no comma before its data"));
    }
    Ok(image)
}
