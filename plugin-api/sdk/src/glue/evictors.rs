//! The verbs of the evictor family.

use std::sync::OnceLock;

use plugin_abi::strategy::{EvictChoice, EvictRequest, Evictors, Resident};
use plugin_abi::{Code, Failure, Handle, Slice};

use super::guard::guard;
use super::strategies::{self, Entries, Family};
use super::text::write_text;
use crate::error::{Error, Result};
use crate::strategy::{self as author, Evictor, Explain};

/// The vtable.
pub(crate) const VERBS: Evictors = Evictors {
    describe: strategies::describe::<dyn Evictor>,
    create: strategies::create::<dyn Evictor>,
    free: strategies::free::<dyn Evictor>,
    choose,
};

impl Family for dyn Evictor {
    const NOUN: &'static str = "evictor";

    fn entries() -> &'static Entries<Self> {
        static ENTRIES: OnceLock<Entries<dyn Evictor>> = OnceLock::new();
        ENTRIES.get_or_init(Entries::gather)
    }
}

unsafe extern "C" fn choose(
    evictor: Handle,
    request: *const EvictRequest,
    residents: Slice<Resident>,
    choice: *mut EvictChoice,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes a live handle, valid pointers and lent memory for the length of the call.
    let (evictor, request, residents, choice, failure) = unsafe {
        (
            strategies::strategy::<dyn Evictor>(evictor),
            &*request,
            residents.as_slice(),
            &mut *choice,
            &mut *failure,
        )
    };
    guard(failure, || {
        // SAFETY: as above.
        let (victims, scores, wanted) = unsafe {
            (choice.victims.as_slice(), choice.scores.as_slice(), choice.explanation.bytes.as_slice())
        };
        let mut text = String::new();
        let mut explain = Explain::new(scores, (!wanted.is_empty()).then_some(&mut text));
        let chosen = evictor.choose(&request_view(request), residents, &mut explain)?;
        check(&chosen, residents, victims.len())?;
        for (slot, &victim) in victims.iter_mut().zip(&chosen.victims) {
            *slot = victim as u32;
        }
        choice.victim_count = chosen.victims.len() as u32;
        choice.memo = chosen.memo;
        choice.explanation.len = write_text(&text, wanted);
        Ok(())
    })
}

fn request_view(request: &EvictRequest) -> author::EvictRequest {
    author::EvictRequest {
        purpose: request.purpose,
        class: request.class,
        need_bytes: request.need_bytes,
        now_ms: request.now_ms,
        priority: request.priority,
        seed: request.seed,
        memo: request.memo,
    }
}

fn check(choice: &author::EvictChoice, residents: &[Resident], room: usize) -> Result<()> {
    if choice.victims.len() > room {
        return Err(Error::Internal(format!("the evictor named {} victims", choice.victims.len())));
    }
    for (place, &victim) in choice.victims.iter().enumerate() {
        let eligible = residents.get(victim).is_some_and(|resident| resident.eligible != 0);
        if !eligible || choice.victims[..place].contains(&victim) {
            return Err(Error::Internal(format!("the evictor chose resident {victim}, which may not go")));
        }
    }
    Ok(())
}
