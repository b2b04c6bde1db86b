//! Embeddings.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::fields::{Fields, missing};
use crate::openai::chat::Labels;
use crate::openai::completions::{Prompt, read_prompts};
use crate::openai::parameters::{positive, refuse_unhonoured};

/// Most inputs one request may carry.
pub const INPUTS_MAXIMUM: usize = 2048;

/// An embedding request in canonical form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbeddingRequest {
    /// The model, as the client named it.
    pub model: String,
    /// What to embed, at least one.
    pub input: Vec<Prompt>,
    /// How to write the vectors.
    pub encoding_format: EncodingFormat,
    /// Length of the vectors, where the model can choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Labels that cannot change the answer.
    #[serde(flatten)]
    pub labels: Labels,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 of little-endian f32; what official clients ask for.
    Base64,
}

impl EmbeddingRequest {
    /// Reads a request and refuses, by name, what is not understood.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Fields::from_body(body)?;
        let model = request.required_string("model")?;
        let input = request.take("input").ok_or_else(|| missing("input"))?;
        let input = read_prompts("input", input)?;
        if input.is_empty() || input.len() > INPUTS_MAXIMUM {
            let message = format!("between 1 and {INPUTS_MAXIMUM} inputs are required, got {}", input.len());
            return Err(ApiError::invalid("input", message));
        }
        let encoding_format = match request.string("encoding_format")?.as_deref() {
            None | Some("float") => EncodingFormat::Float,
            Some("base64") => EncodingFormat::Base64,
            Some(other) => {
                let message = format!("'{other}' is not one of float, base64");
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let dimensions = positive(&mut request, "dimensions")?;
        let labels = Labels::take(&mut request);
        refuse_unhonoured(&request.rest(), &["model", "input", "encoding_format", "dimensions"])?;
        Ok(Self { model, input, encoding_format, dimensions, labels })
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    /// `list`.
    pub object: String,
    /// One vector per input, in order.
    pub data: Vec<Embedding>,
    /// The model, as the client named it.
    pub model: String,
    /// What it cost.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Which input.
    pub index: u32,
    /// The vector.
    pub embedding: Vector,
}

/// A vector, in either encoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian f32.
    Base64(String),
}

/// Token counts of an embedding request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

impl Vector {
    /// Writes a vector in the encoding asked for.
    pub fn encode(values: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Float(values),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }

    /// The numbers, from either encoding; `None` if the base64 is broken.
    pub fn values(&self) -> Option<Vec<f32>> {
        match self {
            Self::Float(values) => Some(values.clone()),
            Self::Base64(text) => {
                let bytes = STANDARD.decode(text).ok()?;
                let chunks = bytes.chunks_exact(4);
                let read = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
                chunks.remainder().is_empty().then(|| chunks.map(read).collect())
            }
        }
    }
}

impl EmbeddingList {
    /// An answer from vectors in input order.
    pub fn new(model: impl Into<String>, vectors: Vec<Vector>, prompt_tokens: u64) -> Self {
        let embed =
            |(index, embedding)| Embedding { object: "embedding".to_owned(), index: index as u32, embedding };
        Self {
            object: "list".to_owned(),
            data: vectors.into_iter().enumerate().map(embed).collect(),
            model: model.into(),
            usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
        }
    }
}
