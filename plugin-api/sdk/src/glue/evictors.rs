//! The verbs of the evictor family.

use std::sync::OnceLock;

use plugin_abi::strategy::{EvictChoice, EvictRequest, Evictors, Resident, StrategyInfo};
use plugin_abi::{Code, Failure, Handle, Slice, Str};

use super::entry::EvictorEntry;
use super::guard::{guard, guard_silently};
use super::text::write_text;
use crate::error::{Error, Result};
use crate::strategy::{self, Evictor, Explain};

/// The vtable.
pub(crate) const VERBS: Evictors = Evictors { describe, create, free, choose };

struct Entries {
    list: Vec<&'static EvictorEntry>,
    infos: Vec<StrategyInfo>,
}

// SAFETY: the infos point to 'static data that nobody writes to.
unsafe impl Send for Entries {}
// SAFETY: as above.
unsafe impl Sync for Entries {}

fn entries() -> &'static Entries {
    static ENTRIES: OnceLock<Entries> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut list: Vec<_> = inventory::iter::<EvictorEntry>.into_iter().collect();
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

unsafe extern "C" fn create(index: u32, options: Str, evictor: *mut Handle, failure: *mut Failure) -> Code {
    // SAFETY: the host passes valid pointers and text for the length of the call.
    let (options, evictor, failure) = unsafe { (options.as_str(), &mut *evictor, &mut *failure) };
    guard(failure, || {
        let entry = entries()
            .list
            .get(index as usize)
            .ok_or_else(|| Error::InvalidInput(format!("this plugin has no evictor number {index}")))?;
        let options = options.map_err(|_| Error::InvalidInput("the options are not UTF-8".into()))?;
        let made: Box<dyn Evictor> = (entry.create)(options)?;
        *evictor = Handle(Box::into_raw(Box::new(made)) as u64);
        Ok(())
    })
}

unsafe extern "C" fn free(evictor: Handle) {
    guard_silently((), || {
        if evictor != Handle::NONE {
            // SAFETY: the host passes a handle from `create` once, and no other call is under way.
            drop(unsafe { Box::from_raw(evictor.0 as *mut Box<dyn Evictor>) });
        }
    });
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
            &*(evictor.0 as *const Box<dyn Evictor>),
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

fn request_view(request: &EvictRequest) -> strategy::EvictRequest {
    strategy::EvictRequest {
        purpose: request.purpose,
        class: request.class,
        need_bytes: request.need_bytes,
        now_ms: request.now_ms,
        priority: request.priority,
        seed: request.seed,
        memo: request.memo,
    }
}

fn check(choice: &strategy::EvictChoice, residents: &[Resident], room: usize) -> Result<()> {
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
