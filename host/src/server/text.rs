//! `POST /tokenize` and `/detokenize`: the text side alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use wire_api::node::text::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

use super::House;
use super::error::Refused;
use super::payload::{Payload, json};
use super::stream::served;
use crate::generation::of_prompt;
use crate::output::Detokenizer;

/// Text, or a conversation, as the model would read it.
pub async fn tokenize(
    State(house): State<Arc<House>>,
    Payload(body): Payload,
) -> Result<Json<TokenizeResponse>, Refused> {
    let request = TokenizeRequest::parse(&body)?;
    let served = served(&house, request.model()).await?;
    let tokens = match request {
        TokenizeRequest::Text { text, add_special_tokens, .. } => {
            served.text.tokenizer().encode(&text, add_special_tokens).map_err(|error| of_prompt(&error))?
        }
        TokenizeRequest::Chat(chat) => house.generator.chat_prompt(&served, &chat).await?.prompt.ids,
    };
    let context_tokens = u64::from(served.model.info().facts.max_context);
    Ok(Json(TokenizeResponse { count: tokens.len() as u64, context_tokens, tokens }))
}

/// Token ids as text.
pub async fn detokenize(
    State(house): State<Arc<House>>,
    Payload(body): Payload,
) -> Result<Json<DetokenizeResponse>, Refused> {
    let request: DetokenizeRequest = json(&body)?;
    let served = served(&house, &request.model).await?;
    let tokenizer = served.text.tokenizer();
    let mut detokenizer = Detokenizer::new(tokenizer, true, request.skip_special_tokens);
    let mut text: String = request.tokens.iter().map(|id| detokenizer.push(tokenizer, *id)).collect();
    text.push_str(&detokenizer.finish());
    Ok(Json(DetokenizeResponse { text }))
}
