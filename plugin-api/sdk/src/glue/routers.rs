//! The verbs of the router family.

use std::sync::OnceLock;

use plugin_abi::strategy::{Candidate, RouteChoice, RouteRequest, Routers};
use plugin_abi::{Code, Failure, Handle, Slice};

use super::guard::guard;
use super::strategies::{self, Entries, Family};
use super::text::write_text;
use crate::error::{Error, Result};
use crate::strategy::{self as author, Explain, Router};

/// The vtable.
pub(crate) const VERBS: Routers = Routers {
    describe: strategies::describe::<dyn Router>,
    create: strategies::create::<dyn Router>,
    free: strategies::free::<dyn Router>,
    choose,
};

impl Family for dyn Router {
    const NOUN: &'static str = "router";

    fn entries() -> &'static Entries<Self> {
        static ENTRIES: OnceLock<Entries<dyn Router>> = OnceLock::new();
        ENTRIES.get_or_init(Entries::gather)
    }
}

unsafe extern "C" fn choose(
    router: Handle,
    request: *const RouteRequest,
    candidates: Slice<Candidate>,
    choice: *mut RouteChoice,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes a live handle, valid pointers and lent memory for the length of the call.
    let (router, request, candidates, choice, failure) = unsafe {
        (
            strategies::strategy::<dyn Router>(router),
            &*request,
            candidates.as_slice(),
            &mut *choice,
            &mut *failure,
        )
    };
    guard(failure, || {
        if candidates.is_empty() {
            return Err(Error::InvalidInput("there is no candidate to choose from".into()));
        }
        // SAFETY: as above.
        let (scores, wanted) = unsafe { (choice.scores.as_slice(), choice.explanation.bytes.as_slice()) };
        let mut text = String::new();
        let mut explain = Explain::new(scores, (!wanted.is_empty()).then_some(&mut text));
        let chosen = router.choose(&request_view(request), candidates, &mut explain)?;
        check(chosen, candidates)?;
        choice.index = chosen.index as u32;
        choice.explanation.len = write_text(&text, wanted);
        Ok(())
    })
}

fn request_view<'a>(request: &RouteRequest) -> author::RouteRequest<'a> {
    author::RouteRequest {
        model: request.model,
        session: request.session,
        ordinal: request.ordinal,
        seed: request.seed,
        now_ms: request.now_ms,
        prompt_tokens: request.prompt_tokens,
        max_tokens: request.max_tokens,
        expected_tokens: request.expected_tokens,
        priority: request.priority,
        // SAFETY: the host keeps the hashes valid for the length of the call, which 'a does not outlive.
        prefix_blocks: unsafe { request.prefix_blocks.as_slice() },
        block_tokens: request.block_tokens,
    }
}

fn check(choice: author::RouteChoice, candidates: &[Candidate]) -> Result<()> {
    if choice.index < candidates.len() {
        return Ok(());
    }
    Err(Error::Internal(format!("the router chose {} of {} candidates", choice.index, candidates.len())))
}
