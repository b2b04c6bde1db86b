//! Tools that the Anthropic dialect defines by a dated type and clients run themselves.
//!
//! A local model knows none of them, so each becomes a function with a schema of the fields its
//! clients read. Tools that only the vendor's servers can run have no counterpart.

use serde_json::{Value, json};

use crate::openai::tools::Tool;

/// The function that stands for a typed tool; `None` if only the vendor can run it.
pub(super) fn function_of(kind: &str, name: &str) -> Option<Tool> {
    let (description, parameters) = if kind.starts_with("bash_") {
        ("Run a command in a persistent bash session and return its output.", bash())
    } else if kind.starts_with("text_editor_") {
        ("View, create and edit text files.", text_editor())
    } else if kind.starts_with("memory_") {
        ("View and edit files in the memory directory, /memories.", memory())
    } else {
        return None;
    };
    Some(Tool {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        parameters: Some(parameters),
        strict: None,
    })
}

fn bash() -> Value {
    json!({"type": "object", "properties": {
        "command": {"type": "string", "description": "The command to run."},
        "restart": {"type": "boolean", "description": "Restart the session instead of running a command."},
    }})
}

fn text_editor() -> Value {
    json!({"type": "object", "properties": {
        "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
        "path": {"type": "string", "description": "Absolute path of the file or directory."},
        "file_text": {"type": "string", "description": "For create: the content."},
        "old_str": {"type": "string", "description": "For str_replace: the text to replace; it must occur once."},
        "new_str": {"type": "string", "description": "For str_replace: the replacement."},
        "insert_line": {"type": "integer", "description": "For insert: the line after which to insert."},
        "insert_text": {"type": "string", "description": "For insert: the text."},
        "view_range": {"type": "array", "items": {"type": "integer"}, "description": "For view: first and last line."},
    }, "required": ["command", "path"]})
}

fn memory() -> Value {
    json!({"type": "object", "properties": {
        "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
        "path": {"type": "string", "description": "Path below /memories."},
        "file_text": {"type": "string", "description": "For create: the content."},
        "old_str": {"type": "string", "description": "For str_replace: the text to replace."},
        "new_str": {"type": "string", "description": "For str_replace: the replacement."},
        "insert_line": {"type": "integer", "description": "For insert: the line after which to insert."},
        "insert_text": {"type": "string", "description": "For insert: the text."},
        "old_path": {"type": "string", "description": "For rename: the present path."},
        "new_path": {"type": "string", "description": "For rename: the new path."},
        "view_range": {"type": "array", "items": {"type": "integer"}, "description": "For view: first and last line."},
    }, "required": ["command"]})
}
