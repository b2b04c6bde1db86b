//! What the verbs of both strategy families share: describing, making and dropping.

use plugin_abi::strategy::StrategyInfo;
use plugin_abi::{Code, Failure, Handle, Slice, Str};

use super::entry::StrategyEntry;
use super::guard::{guard, guard_silently};
use crate::error::Error;

/// A family of strategies: `dyn Router` or `dyn Evictor`.
pub(crate) trait Family: 'static {
    /// What one of them is called in a message.
    const NOUN: &'static str;

    /// Those in this file, gathered once.
    fn entries() -> &'static Entries<Self>;
}

/// The strategies of one family in this file, sorted by name.
pub(crate) struct Entries<S: ?Sized + 'static> {
    list: Vec<&'static StrategyEntry<S>>,
    infos: Vec<StrategyInfo>,
}

// SAFETY: the infos point to 'static data that nobody writes to; entries are plain data and functions.
unsafe impl<S: ?Sized> Send for Entries<S> {}
// SAFETY: as above.
unsafe impl<S: ?Sized> Sync for Entries<S> {}

impl<S: ?Sized + 'static> Entries<S>
where
    StrategyEntry<S>: inventory::Collect,
{
    pub fn gather() -> Self {
        let mut list: Vec<_> = inventory::iter::<StrategyEntry<S>>.into_iter().collect();
        list.sort_by_key(|entry| entry.name);
        let infos = list
            .iter()
            .map(|entry| StrategyInfo { name: Str::new(entry.name), summary: Str::new(entry.summary) })
            .collect();
        Self { list, infos }
    }
}

pub(crate) unsafe extern "C" fn describe<S: Family + ?Sized>() -> Slice<StrategyInfo> {
    guard_silently(Slice::EMPTY, || Slice::new(&S::entries().infos))
}

pub(crate) unsafe extern "C" fn create<S: Family + ?Sized>(
    index: u32,
    options: Str,
    strategy: *mut Handle,
    failure: *mut Failure,
) -> Code {
    // SAFETY: the host passes valid pointers and text for the length of the call.
    let (options, strategy, failure) = unsafe { (options.as_str(), &mut *strategy, &mut *failure) };
    guard(failure, || {
        let entry = S::entries()
            .list
            .get(index as usize)
            .ok_or_else(|| Error::InvalidInput(format!("this plugin has no {} number {index}", S::NOUN)))?;
        let options = options.map_err(|_| Error::InvalidInput("the options are not UTF-8".into()))?;
        let made: Box<S> = (entry.create)(options)?;
        *strategy = Handle(Box::into_raw(Box::new(made)) as u64);
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn free<S: Family + ?Sized>(strategy: Handle) {
    guard_silently((), || {
        if strategy != Handle::NONE {
            // SAFETY: the host passes a handle from `create` once, and no other call is under way.
            drop(unsafe { Box::from_raw(strategy.0 as *mut Box<S>) });
        }
    });
}

/// The strategy behind a handle.
///
/// # Safety
/// The handle came from [`create`] of the same family and is not freed while the reference lives.
pub(crate) unsafe fn strategy<'a, S: Family + ?Sized>(handle: Handle) -> &'a S {
    // SAFETY: the caller's promise.
    unsafe { &*(handle.0 as *const Box<S>) }
}
