//! The verbs of the router family.

use std::sync::OnceLock;

use plugin_abi::strategy::{Candidate, RouteChoice, RouteRequest, Routers, StrategyInfo};
use plugin_abi::{Code, Failure, Handle, Slice, Str};

use super::entry::RouterEntry;
use super::guard::{guard, guard_silently};
use super::text::write_text;
use crate::error::{Error, Result};
use crate::strategy::{self, Explain, Router};

/// The vtable.
pub(crate) const VERBS: Routers = Routers { describe, create, free, choose };

struct Entries {
    list: Vec<&'static RouterEntry>,
    infos: Vec<StrategyInfo>,
}

// SAFETY: the infos point to 'static data that nobody writes to.
unsafe impl Send for Entries {}
// SAFETY: as above.
unsafe impl Sync for Entries {}

fn entries() -> &'static Entries {
    static ENTRIES: OnceLock<Entries> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut list: Vec<_> = inventory::iter::<RouterEntry>.into_iter().collect();
        list.sort_by_key(|entry| entry.name);
        let infos = list
            .iter()
            .map(|entry| StrategyInfo { name: Str::new(entry.name), summary: Str::new(entry.summary) })
            .collect();
        Entries { list, infos }
    })
}

unsafe extern "C" fn describe() -> Slice<StrategyInfo> {
    guard_silently(Slice::EMPTY, || Slice::new(&entries().infos))
}

unsafe extern "C" fn create(index: u32, options: Str, router: *mut Handle, failure: *mut Failure) -> Code {
    // SAFETY: the host passes valid pointers and text for the length of the call.
    let (options, router, failure) = unsafe { (options.as_str(), &mut *router, &mut *failure) };
    guard(failure, || {
        let entry = entries()
            .list
            .get(index as usize)
            .ok_or_else(|| Error::InvalidInput(format!("this plugin has no router number {index}")))?;
        let options = options.map_err(|_| Error::InvalidInput("the options are not UTF-8".into()))?;
        let made: Box<dyn Router> = (entry.create)(options)?;
        *router = Handle(Box::into_raw(Box::new(made)) as u64);
        Ok(())
    })
}

unsafe extern "C" fn free(router: Handle) {
    guard_silently((), || {
        if router != Handle::NONE {
            // SAFETY: the host passes a handle from `create` once, and no other call is under way.
            drop(unsafe { Box::from_raw(router.0 as *mut Box<dyn Router>) });
        }
    });
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
            &*(router.0 as *const Box<dyn Router>),
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

fn request_view<'a>(request: &RouteRequest) -> strategy::RouteRequest<'a> {
    strategy::RouteRequest {
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

fn check(choice: strategy::RouteChoice, candidates: &[Candidate]) -> Result<()> {
    if choice.index < candidates.len() {
        return Ok(());
    }
    Err(Error::Internal(format!("the router chose {} of {} candidates", choice.index, candidates.len())))
}
