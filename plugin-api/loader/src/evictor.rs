//! An evictor: chooses what makes room.

use plugin_abi::strategy::{self, EvictChoice, EvictorsRef, Purpose, Resident, TextBuffer};
use plugin_abi::{Failure, Handle, Slice, SliceMut, Str};

use crate::error::{ErrorKind, PluginError, check};
use crate::plugin::Plugin;
use crate::router::{explanation_room, explanation_text, find};

/// What an evictor is asked for. Time and randomness are inputs: equal inputs give equal answers.
#[derive(Debug, Clone, Copy)]
pub struct EvictRequest {
    /// Why it is asked.
    pub purpose: Purpose,
    /// Residency class of the model that wants in; larger is higher.
    pub class: u32,
    /// Bytes that must become free, beyond what is free already.
    pub need_bytes: u64,
    /// Milliseconds since an arbitrary start.
    pub now_ms: u64,
    /// Priority of the model that wants in; larger is more important.
    pub priority: i32,
    /// Random bits for this decision.
    pub seed: u64,
    /// [`EvictDecision::memo`] of the last choice on this node; 0 at first.
    pub memo: f64,
}

/// An evictor's answer, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct EvictDecision {
    /// Indices of residents, each eligible and named once, in the order they should go. Empty when the need
    /// cannot be met.
    pub victims: Vec<usize>,
    /// A score per resident, the smallest goes first; NaN where the evictor gave none.
    pub scores: Vec<f64>,
    /// One number to keep per node and hand back next time.
    pub memo: f64,
    /// Why, one line per resident as `index<TAB>reason`; empty when nobody asked.
    pub explanation: String,
}

/// An evictor made from its options. Thread-safe; dropping it frees it.
pub struct Evictor {
    verbs: EvictorsRef,
    handle: Handle,
    name: String,
}

impl Plugin {
    /// Makes the evictor called `name`. `options` is a JSON object it validates itself, or empty.
    ///
    /// # Errors
    /// `Unsupported` when the plugin has no such evictor; whatever the evictor says of its options.
    pub fn create_evictor(&self, name: &str, options: &str) -> Result<Evictor, PluginError> {
        let verbs = self.root().evictors();
        let strategy = find("evictor", self.evictors(), name)?;
        let (mut handle, mut failure) = (Handle::NONE, Failure::NONE);
        // SAFETY: all pointers are valid for the call.
        let code = unsafe { (verbs.create())(strategy, Str::new(options), &mut handle, &mut failure) };
        check(code, &failure).map(|()| Evictor { verbs, handle, name: name.to_owned() })
    }
}

impl Evictor {
    /// The name it was made under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Chooses victims among the eligible of `residents`.
    ///
    /// # Errors
    /// `Internal` when the evictor panics, names a resident that may not go or one twice, or names victims
    /// that do not cover the need: a load must never follow an eviction that cannot help.
    pub fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        want_explanation: bool,
    ) -> Result<EvictDecision, PluginError> {
        let lent = strategy::EvictRequest {
            purpose: request.purpose,
            class: request.class,
            need_bytes: request.need_bytes,
            now_ms: request.now_ms,
            priority: request.priority,
            reserved: 0,
            seed: request.seed,
            memo: request.memo,
        };
        let mut victims = vec![u32::MAX; residents.len()];
        let mut scores = vec![f64::NAN; residents.len()];
        let mut room = explanation_room(want_explanation, residents.len());
        let mut choice = EvictChoice {
            victims: SliceMut::new(&mut victims),
            victim_count: 0,
            reserved: 0,
            scores: SliceMut::new(&mut scores),
            memo: request.memo,
            explanation: TextBuffer { bytes: SliceMut::new(&mut room), len: 0 },
        };
        let mut failure = Failure::NONE;
        // SAFETY: the handle is live; inputs and lent memory are valid for the call and do not overlap.
        let code = unsafe {
            (self.verbs.choose())(self.handle, &lent, Slice::new(residents), &mut choice, &mut failure)
        };
        check(code, &failure)?;
        let (count, memo, written) = (choice.victim_count as usize, choice.memo, choice.explanation.len);
        victims.truncate(count);
        let victims: Vec<usize> = victims.into_iter().map(|victim| victim as usize).collect();
        verify(request, residents, &victims, count).map_err(|fault| {
            PluginError::new(ErrorKind::Internal, format!("the evictor {} {fault}", self.name))
        })?;
        Ok(EvictDecision { victims, scores, memo, explanation: explanation_text(room, written) })
    }
}

fn verify(
    request: &EvictRequest,
    residents: &[Resident],
    victims: &[usize],
    count: usize,
) -> Result<(), String> {
    if count > residents.len() {
        return Err(format!("named {count} victims among {} residents", residents.len()));
    }
    for (place, &victim) in victims.iter().enumerate() {
        if residents.get(victim).is_none_or(|resident| resident.eligible == 0) {
            return Err(format!("chose resident {victim}, which may not go"));
        }
        if victims[..place].contains(&victim) {
            return Err(format!("chose resident {victim} twice"));
        }
    }
    let freed = victims.iter().fold(0u64, |sum, &victim| sum.saturating_add(residents[victim].bytes));
    if request.purpose == Purpose::NEED && !victims.is_empty() && freed < request.need_bytes {
        return Err(format!("chose victims of {freed} bytes where {} are needed", request.need_bytes));
    }
    Ok(())
}

impl Drop for Evictor {
    fn drop(&mut self) {
        // SAFETY: the handle is live and named by nobody after this.
        unsafe { (self.verbs.free())(self.handle) };
    }
}

impl std::fmt::Debug for Evictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Evictor({})", self.name)
    }
}
