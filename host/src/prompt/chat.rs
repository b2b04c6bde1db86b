//! Messages of a request in the shape chat templates read.
//!
//! Templates were written for the reference implementation's dictionaries: content is a string, or a list
//! of `{"type": "text"}` and `{"type": "image"}` parts, and arguments of tool calls are objects. Text parts
//! are joined, because templates of text models know strings only; parts stay parts where there is an image.

use serde_json::{Map, Value, json};
use wire_api::openai::content::{Content, ContentPart, ImageUrl};
use wire_api::openai::message::Message;

use super::PromptError;

/// Messages for the template, and the images they show in reading order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateMessages {
    /// One object per message.
    pub messages: Vec<Value>,
    /// Addresses or data URIs, in the order their placeholders will have in the prompt.
    pub images: Vec<ImageUrl>,
}

/// Converts a conversation.
pub fn template_messages(messages: &[Message]) -> Result<TemplateMessages, PromptError> {
    let mut converted = TemplateMessages::default();
    for (index, message) in messages.iter().enumerate() {
        let mut object = Map::new();
        object.insert("role".into(), message.role().into());
        let content = match message.content() {
            Some(content) => convert_content(content, index, &mut converted.images)?,
            // Templates add strings to content; only few expect null.
            None => Value::String(String::new()),
        };
        object.insert("content".into(), content);
        match message {
            Message::System { name, .. } | Message::User { name, .. } => insert_name(&mut object, name),
            Message::Assistant(turn) => {
                insert_name(&mut object, &turn.name);
                if let Some(thought) = &turn.reasoning_content {
                    object.insert("reasoning_content".into(), thought.as_str().into());
                }
                if !turn.tool_calls.is_empty() {
                    let calls = turn.tool_calls.iter().map(|call| {
                        json!({
                            "type": "function",
                            "id": call.id,
                            "function": { "name": call.name, "arguments": call.arguments.to_value() },
                        })
                    });
                    object.insert("tool_calls".into(), calls.collect());
                }
            }
            Message::Tool { tool_call_id, name, .. } => {
                insert_name(&mut object, name);
                object.insert("tool_call_id".into(), tool_call_id.as_str().into());
            }
        }
        converted.messages.push(Value::Object(object));
    }
    Ok(converted)
}

fn insert_name(object: &mut Map<String, Value>, name: &Option<String>) {
    if let Some(name) = name {
        object.insert("name".into(), name.as_str().into());
    }
}

fn convert_content(
    content: &Content,
    message: usize,
    images: &mut Vec<ImageUrl>,
) -> Result<Value, PromptError> {
    let parts = match content {
        Content::Text(text) => return Ok(Value::String(text.clone())),
        Content::Parts(parts) => parts,
    };
    if parts.iter().all(|part| matches!(part, ContentPart::Text(_))) {
        return Ok(Value::String(content.text("")));
    }
    let mut converted = Vec::with_capacity(parts.len());
    for part in parts {
        converted.push(match part {
            ContentPart::Text(text) => json!({"type": "text", "text": text}),
            ContentPart::Image(image) => {
                images.push(image.clone());
                json!({"type": "image"})
            }
            ContentPart::File(_) => {
                return Err(PromptError::InvalidInput(format!(
                    "messages.{message}.content: file parts are not supported; send text or images"
                )));
            }
        });
    }
    Ok(Value::Array(converted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_parts_join_and_images_stay() {
        let image = ImageUrl { url: "data:,x".into(), detail: None };
        let messages = [
            Message::User {
                content: Content::Parts(vec![ContentPart::Text("a".into()), ContentPart::Text("b".into())]),
                name: None,
            },
            Message::User {
                content: Content::Parts(vec![
                    ContentPart::Image(image.clone()),
                    ContentPart::Text("c".into()),
                ]),
                name: Some("n".into()),
            },
            Message::Assistant(Default::default()),
        ];
        let converted = template_messages(&messages).unwrap();
        assert_eq!(converted.images, vec![image]);
        assert_eq!(
            Value::Array(converted.messages),
            json!([
                {"role": "user", "content": "ab"},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "c"}], "name": "n"},
                {"role": "assistant", "content": ""},
            ])
        );
    }
}
