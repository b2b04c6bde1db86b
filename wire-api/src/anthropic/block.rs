//! Content blocks of a request.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, join, mismatch};

/// One block of a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// Text.
    Text(String),
    /// An image.
    Image(Source),
    /// A document.
    Document(Document),
    /// A tool the model called.
    ToolUse {
        /// Correlates call and result.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments, keys in the order received.
        input: Map<String, Value>,
    },
    /// What a tool gave back.
    ToolResult {
        /// The call this answers.
        tool_use_id: String,
        /// What it said.
        content: Vec<Block>,
        /// It failed.
        is_error: bool,
    },
    /// What the model thought.
    Thinking {
        /// The thought.
        thinking: String,
        /// Proof of whose thought it is; empty if the client lost it.
        signature: String,
    },
    /// A thought only its author can read.
    RedactedThinking {
        /// The sealed thought.
        data: String,
    },
    /// Found by a search and shown to the model.
    SearchResult {
        /// Heading.
        title: String,
        /// Where it was found.
        source: String,
        /// What it says.
        texts: Vec<String>,
    },
    /// A tool that became available.
    ToolReference {
        /// Its name.
        name: String,
    },
    /// Something a server-side tool of the vendor left in the history. Kept raw, rendered as text.
    ServerSide {
        /// Its `type`.
        kind: String,
        /// The block as it came.
        raw: Value,
    },
}

/// Where an image or document comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Inside the request.
    Base64 {
        /// `image/png`.
        media_type: String,
        /// Base64.
        data: String,
    },
    /// From an address.
    Url(String),
}

/// A document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Name for people.
    pub title: Option<String>,
    /// What it holds.
    pub content: DocumentContent,
}

/// What a document holds.
#[derive(Debug, Clone, PartialEq)]
pub enum DocumentContent {
    /// A file.
    File(Source),
    /// Plain text.
    Text(String),
    /// Blocks.
    Blocks(Vec<Block>),
}

impl Source {
    /// A data URI, or the address.
    pub fn to_url(&self) -> String {
        match self {
            Self::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
            Self::Url(url) => url.clone(),
        }
    }

    fn take(block: &mut Fields) -> Result<Self, ApiError> {
        let mut source = required_nested(block, "source")?;
        let kind = source.required_string("type")?;
        Self::read(&kind, &mut source)
    }

    fn read(kind: &str, source: &mut Fields) -> Result<Self, ApiError> {
        match kind {
            "base64" => Ok(Self::Base64 {
                media_type: source.required_string("media_type")?,
                data: source.required_string("data")?,
            }),
            "url" => Ok(Self::Url(source.required_string("url")?)),
            "file" => {
                let message = "files are not stored here; send the content as base64 or by url";
                Err(ApiError::invalid(source.at("type"), message))
            }
            other => {
                Err(ApiError::invalid(source.at("type"), format!("'{other}' is not one of base64, url")))
            }
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Base64 { media_type, data } => {
                json!({"type": "base64", "media_type": media_type, "data": data})
            }
            Self::Url(url) => json!({"type": "url", "url": url}),
        }
        .serialize(serializer)
    }
}

impl Serialize for Block {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl Block {
    /// The text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The wire form.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => json!({"type": "text", "text": text}),
            Self::Image(source) => json!({"type": "image", "source": source}),
            Self::Document(document) => document.to_value(),
            Self::ToolUse { id, name, input } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
            Self::ToolResult { tool_use_id, content, is_error } => {
                let mut block =
                    json!({"type": "tool_result", "tool_use_id": tool_use_id, "content": content});
                if *is_error {
                    block["is_error"] = json!(true);
                }
                block
            }
            Self::Thinking { thinking, signature } => {
                json!({"type": "thinking", "thinking": thinking, "signature": signature})
            }
            Self::RedactedThinking { data } => json!({"type": "redacted_thinking", "data": data}),
            Self::SearchResult { title, source, texts } => {
                let content: Vec<Value> =
                    texts.iter().map(|text| json!({"type": "text", "text": text})).collect();
                json!({"type": "search_result", "title": title, "source": source, "content": content})
            }
            Self::ToolReference { name } => json!({"type": "tool_reference", "tool_name": name}),
            Self::ServerSide { raw, .. } => raw.clone(),
        }
    }

    /// Reads a string or a list of blocks.
    pub(crate) fn read_content(path: &str, value: Value) -> Result<Vec<Self>, ApiError> {
        match value {
            Value::String(text) => Ok(vec![Self::Text(text)]),
            Value::Array(items) => {
                let read = |(index, item)| Self::read(&join(path, index), item);
                items.into_iter().enumerate().map(read).collect()
            }
            other => Err(mismatch(path, "a string or a list of blocks", &other)),
        }
    }

    fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut block = Fields::from_value(path, value)?;
        let kind = block.required_string("type")?;
        match kind.as_str() {
            "text" => Ok(Self::Text(block.required_string("text")?)),
            "image" => Ok(Self::Image(Source::take(&mut block)?)),
            "document" => Document::read(block).map(Self::Document),
            "tool_use" => Ok(Self::ToolUse {
                id: block.required_string("id")?,
                name: block.required_string("name")?,
                input: block.object("input")?.unwrap_or_default(),
            }),
            "tool_result" => read_tool_result(block),
            "thinking" => Ok(Self::Thinking {
                thinking: block.required_string("thinking")?,
                signature: block.label("signature").unwrap_or_default(),
            }),
            "redacted_thinking" => {
                Ok(Self::RedactedThinking { data: block.label("data").unwrap_or_default() })
            }
            "search_result" => read_search_result(block),
            "tool_reference" => Ok(Self::ToolReference { name: block.required_string("tool_name")? }),
            "container_upload" => {
                let message = "'container_upload' needs a file store, which there is none of here";
                Err(ApiError::invalid(block.at("type"), message).with_code("unsupported_content_type"))
            }
            kind if is_server_side(kind) => {
                let kind = kind.to_owned();
                let mut raw = block.rest();
                raw.shift_insert(0, "type".to_owned(), json!(kind));
                Ok(Self::ServerSide { kind, raw: Value::Object(raw) })
            }
            other => {
                let message = format!("'{other}' blocks are not supported");
                Err(ApiError::invalid(block.at("type"), message).with_code("unsupported_content_type"))
            }
        }
    }
}

/// Blocks that tools run by the vendor leave in a history: `server_tool_use`, `mcp_tool_use`, and
/// everything that ends in `_tool_result`.
fn is_server_side(kind: &str) -> bool {
    matches!(kind, "server_tool_use" | "mcp_tool_use") || kind.ends_with("_tool_result")
}

fn required_nested(fields: &mut Fields, name: &str) -> Result<Fields, ApiError> {
    fields.nested(name)?.ok_or_else(|| crate::fields::missing(&fields.at(name)))
}

fn read_tool_result(mut block: Fields) -> Result<Block, ApiError> {
    let tool_use_id = block.required_string("tool_use_id")?;
    let path = block.at("content");
    let content = match block.take("content") {
        None => Vec::new(),
        Some(value) => Block::read_content(&path, value)?,
    };
    let allowed = |block: &Block| {
        matches!(
            block,
            Block::Text(_)
                | Block::Image(_)
                | Block::Document(_)
                | Block::SearchResult { .. }
                | Block::ToolReference { .. }
        )
    };
    if let Some(index) = content.iter().position(|block| !allowed(block)) {
        return Err(ApiError::invalid(join(&join(&path, index), "type"), "not allowed inside a tool_result"));
    }
    Ok(Block::ToolResult { tool_use_id, content, is_error: block.boolean("is_error")?.unwrap_or(false) })
}

fn read_search_result(mut block: Fields) -> Result<Block, ApiError> {
    let path = block.at("content");
    let content = block.take("content").map_or(Ok(Vec::new()), |value| Block::read_content(&path, value))?;
    Ok(Block::SearchResult {
        title: block.label("title").unwrap_or_default(),
        source: block.label("source").unwrap_or_default(),
        texts: content.iter().filter_map(Block::as_text).map(str::to_owned).collect(),
    })
}

impl Document {
    fn read(mut block: Fields) -> Result<Self, ApiError> {
        let title = block.label("title");
        let mut source = required_nested(&mut block, "source")?;
        let kind = source.required_string("type")?;
        let content = match kind.as_str() {
            "text" => DocumentContent::Text(source.required_string("data")?),
            "content" => {
                let path = source.at("content");
                let content = source.take("content").ok_or_else(|| crate::fields::missing(&path))?;
                DocumentContent::Blocks(Block::read_content(&path, content)?)
            }
            other => DocumentContent::File(Source::read(other, &mut source)?),
        };
        Ok(Self { title, content })
    }

    fn to_value(&self) -> Value {
        let source = match &self.content {
            DocumentContent::File(source) => json!(source),
            DocumentContent::Text(text) => json!({"type": "text", "media_type": "text/plain", "data": text}),
            DocumentContent::Blocks(blocks) => json!({"type": "content", "content": blocks}),
        };
        let mut block = json!({"type": "document", "source": source});
        if let Some(title) = &self.title {
            block["title"] = json!(title);
        }
        block
    }
}
