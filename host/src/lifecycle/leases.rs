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
use super::memory::{Accounts, Reservation, Room};

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
    /// Until a load takes it over.
    promise: Option<Reservation>,
}

/// What a node knows when it is asked for a lease.
#[derive(Debug, Clone)]
pub(super) struct Situation {
    /// The residency revision.
    pub revision: u64,
    /// Memory of every device that can be used; what the planner's victims will free counts as free.
    pub rooms: Vec<Room>,
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
        situation: &Situation,
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
        let (rooms, needs) = claimed(request, &situation.rooms)?;
        let (_, promise) = accounts
            .reserve(&rooms, None, |left| {
                for ((room, need), left) in rooms.iter().zip(&needs).zip(left) {
                    if need > left {
                        return Err(does_not_fit(&format!("the lease on {}", room.device), *need, *left));
                    }
                }
                Ok(((), needs.clone()))
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
        let held =
            state.held.insert(Held { lease, owner: request.owner.clone(), expires, promise: Some(promise) });
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

    /// Hands what a lease was promised to the load that begins under it: from here on the load holds it, and
    /// the lease may be released while the load still runs.
    pub fn hand_over(&self, guard: &Guard) -> Option<Reservation> {
        let mut state = self.lock();
        let held = state.held.as_mut().filter(|held| Some(&held.lease.id) == guard.lease.as_ref())?;
        held.promise.take()
    }

    /// Lets what has lapsed lapse.
    pub fn sweep(&self) {
        drop(self.lock());
    }
}

/// The devices a request claims memory of, and how much of each.
fn claimed(request: &LeaseRequest, rooms: &[Room]) -> Result<(Vec<Room>, Vec<u64>), LifecycleError> {
    let (mut devices, mut needs): (Vec<Room>, Vec<u64>) = (Vec::new(), Vec::new());
    for claim in &request.claims {
        let name = if claim.device.as_str() == "cpu" { "cpu-0" } else { claim.device.as_str() };
        if let Some(place) = devices.iter().position(|room| room.device.as_str() == name) {
            needs[place] += claim.bytes;
            continue;
        }
        let room = rooms.iter().find(|room| room.device.as_str() == name).ok_or_else(|| {
            LifecycleError::Invalid(format!("there is no device {} to lease", claim.device))
        })?;
        devices.push(room.clone());
        needs.push(claim.bytes);
    }
    Ok((devices, needs))
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

    /// A machine with so much free memory, and a GPU.
    fn with(available: u64) -> Situation {
        let gpu = Room::of_a_gpu("cuda-1".into(), 1000, 1000);
        Situation { revision: 5, rooms: vec![Room::of_the_machine(1000, available), gpu] }
    }

    fn now() -> Situation {
        with(500)
    }

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
        let first = leases.grant(&request(100), &now(), &accounts).unwrap();
        assert!(matches!(leases.grant(&request(100), &now(), &accounts), Err(LifecycleError::Leased { .. })));
        leases.check(&guard(&first)).unwrap();
        leases.check(&Guard::default()).unwrap();
        let renewed = LeaseRequest { lease: Some(first.id.clone()), ..request(0) };
        assert_eq!(leases.grant(&renewed, &now(), &accounts).unwrap().fence, first.fence);

        assert!(leases.release(&first.id) && !leases.release(&first.id));
        assert!(matches!(leases.check(&guard(&first)), Err(LifecycleError::StaleFence { .. })));
        let second = leases.grant(&request(100), &now(), &accounts).unwrap();
        assert!(second.fence > first.fence);
        assert!(matches!(leases.check(&guard(&first)), Err(LifecycleError::StaleFence { .. })));
        leases.check(&guard(&second)).unwrap();
    }

    #[test]
    fn what_is_leased_is_not_free_until_the_lease_lapses() {
        let (leases, accounts) = (Leases::default(), Accounts::default());
        let short = LeaseRequest { ttl_ms: 0, ..request(300) };
        let lapsed = leases.grant(&short, &now(), &accounts).unwrap();
        assert_eq!(accounts.promised("cpu-0"), 300);
        leases.sweep();
        assert_eq!(accounts.promised("cpu-0"), 0);
        assert!(leases.check(&guard(&lapsed)).is_err());
        // Of 500 bytes, 50 are spare.
        let too_much = leases.grant(&request(460), &now(), &accounts).unwrap_err();
        assert!(too_much.to_string().contains("10 bytes are missing"), "{too_much}");
        leases.grant(&request(460), &with(600), &accounts).unwrap();
    }

    #[test]
    fn a_load_takes_over_what_its_lease_was_promised() {
        let (leases, accounts) = (Leases::default(), Accounts::default());
        let lease = leases.grant(&request(300), &now(), &accounts).unwrap();
        assert!(leases.hand_over(&Guard::default()).is_none(), "no lease, no promise");
        let promise = leases.hand_over(&guard(&lease));
        assert!(promise.is_some() && leases.hand_over(&guard(&lease)).is_none(), "once only");
        assert!(leases.release(&lease.id));
        assert_eq!(accounts.promised("cpu-0"), 300, "the load holds it");
        leases.grant(&request(100), &now(), &accounts).expect("beside it, another may be planned");
        drop(promise);
    }

    #[test]
    fn a_lease_is_planned_on_the_residency_there_is() {
        let (leases, accounts) = (Leases::default(), Accounts::default());
        let old = LeaseRequest { residency_revision: Some(4), ..request(1) };
        assert!(matches!(leases.grant(&old, &now(), &accounts), Err(LifecycleError::StaleRevision { .. })));
        let mut elsewhere = request(1);
        elsewhere.claims[0].device = "cuda-1".into();
        elsewhere.claims.push(Claim { device: "cpu".into(), bytes: 300 });
        let lease = leases.grant(&elsewhere, &now(), &accounts).unwrap();
        assert_eq!((accounts.promised("cuda-1"), accounts.promised("cpu-0")), (1, 300));
        leases.release(&lease.id);
        elsewhere.claims[0].bytes = 951;
        let too_much = leases.grant(&elsewhere, &now(), &accounts).unwrap_err();
        assert!(too_much.to_string().contains("the lease on cuda-1 needs"), "{too_much}");
        elsewhere.claims[0].device = "cuda-3".into();
        assert!(matches!(leases.grant(&elsewhere, &now(), &accounts), Err(LifecycleError::Invalid(_))));
    }
}
