//! Leases: this node's memory, promised to one planner at a time under a fence.
//!
//! A planner asks for a lease before it evicts and loads, and commands under the lease's fence. Fences only
//! grow. A planner that was paused comes back with an old one and is refused, so that any number of planners
//! needs no other agreement than this. A lease that is not renewed lapses by itself; what it promised is then
//! free again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wire_api::node::LeaseId;
use wire_api::node::lease::{Guard, Lease, LeaseRequest};

use super::error::{LifecycleError, does_not_fit};
use super::memory::{Accounts, Reservation};

/// Longest time a lease is granted for without being renewed.
const LONGEST: Duration = Duration::from_secs(600);

/// All leases of this node.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    newest_fence: u64,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    owner: String,
    expires: Instant,
    promise: Reservation,
}

/// What a node knows when it is asked for a lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    /// The residency revision.
    pub revision: u64,
    /// Memory of the machine, in bytes.
    pub total: u64,
    /// Of it, free now.
    pub available: u64,
    /// What the victims the planner names will free.
    pub from_victims: u64,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.held.as_ref().is_some_and(|held| held.expires <= Instant::now()) {
            state.held = None;
        }
        state
    }

    /// Grants a lease, or renews the one the request names.
    pub fn grant(
        &self,
        request: &LeaseRequest,
        situation: Situation,
        accounts: &Accounts,
    ) -> Result<Lease, LifecycleError> {
        let mut state = self.lock();
        let expires = Instant::now() + Duration::from_millis(request.ttl_ms).min(LONGEST);
        if let Some(id) = &request.lease {
            let newest = state.newest_fence;
            let held = state.held.as_mut().filter(|held| held.lease.id == *id);
            let held = held.ok_or(LifecycleError::StaleFence { given: 0, newest })?;
            held.expires = expires;
            return Ok(held.lease_now());
        }
        if let Some(held) = &state.held {
            return Err(LifecycleError::Leased {
                owner: held.owner.clone(),
                expires_in_ms: held.expires_in_ms(),
            });
        }
        if let Some(planned) = request.residency_revision
            && planned < situation.revision
        {
            return Err(LifecycleError::StaleRevision { planned, actual: situation.revision });
        }
        if let Some(claim) =
            request.claims.iter().find(|claim| !matches!(claim.device.as_str(), "cpu" | "cpu-0"))
        {
            return Err(LifecycleError::Invalid(format!("there is no device {} to lease", claim.device)));
        }
        let need: u64 = request.claims.iter().map(|claim| claim.bytes).sum();
        let available = situation.available + situation.from_victims;
        let (_, promise) = accounts
            .reserve(situation.total, available, None, |room| {
                if need > room { Err(does_not_fit("the lease", need, room)) } else { Ok(((), need)) }
            })
            .map_err(|failure| LifecycleError::Unavailable { model: request.model.clone(), failure })?;
        state.newest_fence += 1;
        let lease = Lease {
            id: LeaseId(format!("lease-{}", state.newest_fence)),
            fence: state.newest_fence,
            model: request.model.clone(),
            claims: request.claims.clone(),
            expires_in_ms: 0,
            residency_revision: situation.revision,
        };
        let held = state.held.insert(Held { lease, owner: request.owner.clone(), expires, promise });
        Ok(held.lease_now())
    }

    /// Gives a lease back. Whether it was held.
    pub fn release(&self, id: &LeaseId) -> bool {
        let mut state = self.lock();
        let held = state.held.as_ref().is_some_and(|held| held.lease.id == *id);
        if held {
            state.held = None;
        }
        held
    }

    /// Refuses a command under a lease that is no longer held or a fence that is no longer the newest.
    pub fn check(&self, guard: &Guard) -> Result<(), LifecycleError> {
        let state = self.lock();
        let newest = state.newest_fence;
        let held = state.held.as_ref().map(|held| &held.lease);
        let lease_is_held = guard.lease.as_ref().is_none_or(|id| held.is_some_and(|held| held.id == *id));
        let fence_is_newest = guard.fence.is_none_or(|fence| fence == newest);
        if lease_is_held && fence_is_newest {
            return Ok(());
        }
        Err(LifecycleError::StaleFence { given: guard.fence.unwrap_or(0), newest })
    }

    /// The promise behind a lease, which a load under that lease may use.
    pub fn promise(&self, guard: &Guard) -> Option<u64> {
        let state = self.lock();
        let held = state.held.as_ref().filter(|held| Some(&held.lease.id) == guard.lease.as_ref())?;
        Some(held.promise.id())
    }

    /// Lets what has lapsed lapse.
    pub fn sweep(&self) {
        drop(self.lock());
    }
}

impl Held {
    fn expires_in_ms(&self) -> u64 {
        self.expires.saturating_duration_since(Instant::now()).as_millis() as u64
    }

    fn lease_now(&self) -> Lease {
        Lease { expires_in_ms: self.expires_in_ms(), ..self.lease.clone() }
    }
}

#[cfg(test)]
mod tests {
    use wire_api::node::lease::Claim;

    use super::*;

    const NOW: Situation = Situation { revision: 5, total: 1000, available: 500, from_victims: 0 };

    fn request(bytes: u64) -> LeaseRequest {
        LeaseRequest {
            owner: "a".into(),
            model: "m".into(),
            claims: vec![Claim { device: "cpu-0".into(), bytes }],
            ttl_ms: 60_000,
            ..LeaseRequest::default()
        }
    }

    fn guard(lease: &Lease) -> Guard {
        Guard { lease: Some(lease.id.clone()), fence: Some(lease.fence), residency_revision: None }
    }

    #[test]
    fn one_planner_at_a_time_and_old_fences_are_refused() {
        let (leases, accounts) = (Leases::default(), Accounts::default());
        let first = leases.grant(&request(100), NOW, &accounts).unwrap();
        assert!(matches!(leases.grant(&request(100), NOW, &accounts), Err(LifecycleError::Leased { .. })));
        leases.check(&guard(&first)).unwrap();
        leases.check(&Guard::default()).unwrap();
        let renewed = LeaseRequest { lease: Some(first.id.clone()), ..request(0) };
        assert_eq!(leases.grant(&renewed, NOW, &accounts).unwrap().fence, first.fence);

        assert!(leases.release(&first.id) && !leases.release(&first.id));
        assert!(matches!(leases.check(&guard(&first)), Err(LifecycleError::StaleFence { .. })));
        let second = leases.grant(&request(100), NOW, &accounts).unwrap();
        assert!(second.fence > first.fence);
        assert!(matches!(leases.check(&guard(&first)), Err(LifecycleError::StaleFence { .. })));
        leases.check(&guard(&second)).unwrap();
    }

    #[test]
    fn what_is_leased_is_not_free_until_the_lease_lapses() {
        let (leases, accounts) = (Leases::default(), Accounts::default());
        let short = LeaseRequest { ttl_ms: 0, ..request(300) };
        let lapsed = leases.grant(&short, NOW, &accounts).unwrap();
        assert_eq!(accounts.promised(), 300);
        leases.sweep();
        assert_eq!(accounts.promised(), 0);
        assert!(leases.check(&guard(&lapsed)).is_err());
        // Of 500 bytes, 50 are spare.
        let too_much = leases.grant(&request(460), NOW, &accounts).unwrap_err();
        assert!(too_much.to_string().contains("10 bytes are missing"), "{too_much}");
        let with_victims = Situation { from_victims: 100, ..NOW };
        leases.grant(&request(460), with_victims, &accounts).unwrap();
    }

    #[test]
    fn a_lease_is_planned_on_the_residency_there_is() {
        let (leases, accounts) = (Leases::default(), Accounts::default());
        let old = LeaseRequest { residency_revision: Some(4), ..request(1) };
        assert!(matches!(leases.grant(&old, NOW, &accounts), Err(LifecycleError::StaleRevision { .. })));
        let mut elsewhere = request(1);
        elsewhere.claims[0].device = "cuda-3".into();
        assert!(matches!(leases.grant(&elsewhere, NOW, &accounts), Err(LifecycleError::Invalid(_))));
    }
}
