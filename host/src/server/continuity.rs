//! Answers that may be gone on with elsewhere, and those that were begun elsewhere.

use axum::http::HeaderMap;
use wire_api::node::continuation::{ContinueRequest, LOG_HEADER};
use wire_api::openai::chat::ChatRequest;
use wire_api::{ApiError, ErrorKind};

/// How an answer hangs together with what another node said, or may have to say. By default not at all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Continuity {
    /// The seed, where the request names none.
    pub seed: Option<u64>,
    /// Write the token log into the stream.
    pub log: bool,
    /// Tokens said elsewhere.
    pub emitted: Vec<u32>,
    /// Events the client has.
    pub told: u64,
    /// What the answer is called and when it was begun, if that was elsewhere.
    pub head: Option<(String, u64)>,
}

impl Continuity {
    /// What the headers of a new request ask for.
    pub fn of_headers(headers: &HeaderMap) -> Self {
        let seed = headers.get(LOG_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { seed, log: seed.is_some(), ..Self::default() }
    }

    /// What a gateway asks to be gone on with, and the request it was.
    ///
    /// # Errors
    ///
    /// 400 for what cannot be gone on with exactly.
    pub fn of_order(order: ContinueRequest) -> Result<(ChatRequest, Self), ApiError> {
        let request = ChatRequest::parse(order.request.to_string().as_bytes())?;
        let refuse = |why| Err(ApiError::new(ErrorKind::InvalidRequest, why).with_code("not_continuable"));
        if !request.stream {
            return refuse("only a stream can be gone on with");
        }
        if request.parameters.n != 1 || request.parameters.logprobs {
            return refuse("only one answer without log probabilities can be gone on with");
        }
        let continuity = Self {
            seed: Some(order.seed),
            log: true,
            emitted: order.emitted,
            told: order.told,
            head: Some((order.id, order.created)),
        };
        Ok((request, continuity))
    }

    /// Gives the request the seed that was agreed, where it names none.
    pub fn settle(&self, request: &mut ChatRequest) {
        if let Some(seed) = self.seed {
            request.parameters.seed.get_or_insert(seed as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(more: &str) -> ContinueRequest {
        let request =
            format!(r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"x"}}]{more}}}"#);
        ContinueRequest {
            request: serde_json::from_str(&request).unwrap(),
            seed: u64::MAX,
            emitted: vec![1, 2],
            told: 3,
            id: "chatcmpl-1".into(),
            created: 5,
        }
    }

    #[test]
    fn only_what_can_be_exact_is_gone_on_with() {
        let (mut request, continuity) = Continuity::of_order(order("")).unwrap();
        continuity.settle(&mut request);
        assert_eq!(request.parameters.seed, Some(-1), "all 64 bits");
        assert_eq!(continuity.head, Some(("chatcmpl-1".into(), 5)));
        let (mut request, continuity) = Continuity::of_order(order(r#","seed":7"#)).unwrap();
        continuity.settle(&mut request);
        assert_eq!(request.parameters.seed, Some(7), "what the client asked for stays");
        for more in [r#","n":2"#, r#","logprobs":true"#] {
            assert_eq!(Continuity::of_order(order(more)).unwrap_err().code, "not_continuable");
        }
    }
}
