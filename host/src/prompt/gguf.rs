//! The key-value part of a GGUF file.
//!
//! Only metadata: the supervisor wants the architecture's name, the tokenizer and the chat template, and
//! never maps weights. Every length in the file is checked against the bytes that are left and against
//! fixed ceilings before anything is allocated, because the file may come from anywhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

const MAGIC: &[u8; 4] = b"GGUF";
const MAX_KEYS: u64 = 65_536;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_STRING_BYTES: u64 = 64 << 20;
const MAX_ARRAY_ITEMS: u64 = 16 << 20;
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_METADATA_BYTES: u64 = 1 << 30;

/// One metadata value. Integers of every width are widened, so that readers need not care.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// UTF-8 text; invalid bytes are replaced.
    String(String),
    /// An array of values of one type.
    Array(Vec<GgufValue>),
}

/// Why the metadata cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file ends early or cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
    /// The first bytes are not those of a GGUF file.
    #[error("not a GGUF file")]
    NotGguf,
    /// A version this reader does not know, or a big-endian file.
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    /// A length, type or count that cannot be right.
    #[error("malformed metadata: {0}")]
    Malformed(String),
}

/// The metadata of one file.
#[derive(Debug, Clone, Default)]
pub struct GgufMetadata {
    values: HashMap<String, GgufValue>,
    tensor_count: u64,
}

impl GgufMetadata {
    /// Reads the metadata of the file at `path`.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Self::read(BufReader::with_capacity(1 << 20, file), bytes)
    }

    /// Reads metadata from `source`, of which at most `bytes` bytes exist.
    pub fn read(source: impl Read, bytes: u64) -> Result<Self, GgufError> {
        let mut reader = Reader { source, left: bytes.min(MAX_METADATA_BYTES) };
        let mut magic = [0u8; 4];
        reader.fill(&mut magic).map_err(|_| GgufError::NotGguf)?;
        if &magic != MAGIC {
            return Err(GgufError::NotGguf);
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = reader.u64()?;
        let keys = reader.u64()?;
        if keys > MAX_KEYS {
            return Err(GgufError::Malformed(format!("{keys} keys")));
        }
        let mut values = HashMap::with_capacity(keys as usize);
        for _ in 0..keys {
            let key = reader.string(MAX_KEY_BYTES)?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0)?;
            values.insert(key, value);
        }
        Ok(Self { values, tensor_count })
    }

    /// How many tensors the file says it holds.
    pub fn tensor_count(&self) -> u64 {
        self.tensor_count
    }

    /// `general.architecture`, the name by which plugins are chosen.
    pub fn architecture(&self) -> Option<&str> {
        self.string("general.architecture")
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// The value of `key` if it is text.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            GgufValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value of `key` if it is a boolean.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            GgufValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of `key` if it is an integer that fits.
    pub fn u32(&self, key: &str) -> Option<u32> {
        match self.get(key)? {
            GgufValue::Unsigned(value) => u32::try_from(*value).ok(),
            GgufValue::Signed(value) => u32::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value of `key` if it is an array.
    pub fn array(&self, key: &str) -> Option<&[GgufValue]> {
        match self.get(key)? {
            GgufValue::Array(items) => Some(items),
            _ => None,
        }
    }
}

struct Reader<R> {
    source: R,
    left: u64,
}

impl<R: Read> Reader<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.claim(buffer.len() as u64)?;
        Ok(self.source.read_exact(buffer)?)
    }

    fn claim(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| GgufError::Malformed(format!("{bytes} bytes wanted, {} left", self.left)))?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut buffer = [0u8; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn string(&mut self, limit: u64) -> Result<String, GgufError> {
        let length = self.u64()?;
        if length > limit {
            return Err(GgufError::Malformed(format!("a string of {length} bytes")));
        }
        self.claim(length)?;
        let mut bytes = vec![0u8; length as usize];
        self.source.read_exact(&mut bytes)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<GgufValue, GgufError> {
        Ok(match kind {
            0 => GgufValue::Unsigned(self.bytes::<1>()?[0].into()),
            1 => GgufValue::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => GgufValue::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => GgufValue::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => GgufValue::Bool(self.bytes::<1>()?[0] != 0),
            8 => GgufValue::String(self.string(MAX_STRING_BYTES)?),
            9 => self.array(depth + 1)?,
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(GgufError::Malformed(format!("value type {other}"))),
        })
    }

    fn array(&mut self, depth: u32) -> Result<GgufValue, GgufError> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(GgufError::Malformed("arrays nested too deeply".into()));
        }
        let kind = self.u32()?;
        let items = self.u64()?;
        // Every item takes at least one byte, so a count beyond the rest of the file is a lie.
        if items > MAX_ARRAY_ITEMS || items > self.left {
            return Err(GgufError::Malformed(format!("an array of {items} items")));
        }
        let mut values = Vec::with_capacity(items.min(1 << 16) as usize);
        for _ in 0..items {
            values.push(self.value(kind, depth)?);
        }
        Ok(GgufValue::Array(values))
    }
}

#[cfg(test)]
pub(crate) mod build {
    //! Writes metadata for tests.

    use super::GgufValue;

    /// A version 3 file holding only `entries`.
    pub fn file(entries: &[(&str, GgufValue)]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&0u64.to_le_bytes());
        out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        for (key, value) in entries {
            text(&mut out, key);
            out.extend_from_slice(&kind(value).to_le_bytes());
            payload(&mut out, value);
        }
        out
    }

    fn kind(value: &GgufValue) -> u32 {
        match value {
            GgufValue::Unsigned(_) => 4,
            GgufValue::Signed(_) => 5,
            GgufValue::Float(_) => 6,
            GgufValue::Bool(_) => 7,
            GgufValue::String(_) => 8,
            GgufValue::Array(_) => 9,
        }
    }

    fn payload(out: &mut Vec<u8>, value: &GgufValue) {
        match value {
            GgufValue::Unsigned(v) => out.extend_from_slice(&(*v as u32).to_le_bytes()),
            GgufValue::Signed(v) => out.extend_from_slice(&(*v as i32).to_le_bytes()),
            GgufValue::Float(v) => out.extend_from_slice(&(*v as f32).to_le_bytes()),
            GgufValue::Bool(v) => out.push(u8::from(*v)),
            GgufValue::String(v) => text(out, v),
            GgufValue::Array(items) => {
                out.extend_from_slice(&items.first().map_or(4, kind).to_le_bytes());
                out.extend_from_slice(&(items.len() as u64).to_le_bytes());
                items.iter().for_each(|item| payload(out, item));
            }
        }
    }

    fn text(out: &mut Vec<u8>, value: &str) {
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        out.extend_from_slice(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<GgufMetadata, GgufError> {
        GgufMetadata::read(bytes, bytes.len() as u64)
    }

    #[test]
    fn reads_back_what_was_written() {
        let array = GgufValue::Array(vec![GgufValue::String("a".into()), GgufValue::String("ü".into())]);
        let bytes = build::file(&[
            ("general.architecture", GgufValue::String("llama".into())),
            ("n", GgufValue::Unsigned(7)),
            ("m", GgufValue::Signed(-3)),
            ("f", GgufValue::Float(0.5)),
            ("b", GgufValue::Bool(true)),
            ("a", array.clone()),
        ]);
        let data = read(&bytes).unwrap();
        assert_eq!(data.architecture(), Some("llama"));
        assert_eq!(data.u32("n"), Some(7));
        assert_eq!(data.get("m"), Some(&GgufValue::Signed(-3)));
        assert_eq!(data.get("f"), Some(&GgufValue::Float(0.5)));
        assert_eq!(data.bool("b"), Some(true));
        assert_eq!(data.get("a"), Some(&array));
    }

    #[test]
    fn refuses_lies_about_lengths() {
        let mut bytes = build::file(&[("k", GgufValue::String("value".into()))]);
        let length_at = 4 + 4 + 8 + 8 + 8 + 1 + 4;
        bytes[length_at..length_at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(read(&bytes), Err(GgufError::Malformed(_))));

        let mut many = build::file(&[]);
        many[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(read(&many), Err(GgufError::Malformed(_))));

        let mut array = build::file(&[("k", GgufValue::Array(vec![GgufValue::Unsigned(1)]))]);
        let count_at = length_at + 4;
        array[count_at..count_at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(matches!(read(&array), Err(GgufError::Malformed(_))));
    }

    #[test]
    fn refuses_other_files_and_versions() {
        assert!(matches!(read(b"PK\x03\x04aaaa"), Err(GgufError::NotGguf)));
        assert!(matches!(read(b""), Err(GgufError::NotGguf)));
        assert!(matches!(read(b"GGUF\x00\x00\x00\x03aaaaaaaaaaaaaaaa"), Err(GgufError::Version(_))));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = read(&bytes);
            let mut head = b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00".to_vec();
            head.append(&mut bytes);
            let _ = read(&head);
        }
    }
}
