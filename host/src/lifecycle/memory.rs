//! Memory is planned before a load and measured after it.
//!
//! [`decide`] turns a plugin's plan and the room there is into limits for the engine, or into a refusal that
//! names the missing bytes. [`Accounts`] is the node's one book of what models were promised, per device: what a
//! model was promised and does not use yet is not free, however free the device says it is.

use std::sync::{Arc, Mutex, PoisonError};

use wire_api::node::DeviceId;
use wire_api::node::models::{Failure, ModelMemory};

use super::error::does_not_fit;
use crate::worker::protocol::{EngineLimits, MemoryPlan};

/// Of a device's memory, what is never promised, as a divisor.
const SPARE_SHARE: u64 = 20;

/// Of a GPU's memory, what is never promised at most: a context and the workspaces of its libraries.
const SPARE_OF_A_GPU: u64 = 2 << 30;

/// A context below this is not worth loading a model for, unless the model was made for less.
const LEAST_CONTEXT: u32 = 512;

/// What the operator or the caller asked for, with the node's defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wishes {
    /// Longest context; `None` lets the node choose.
    pub context: Option<u32>,
    /// Sequences at once.
    pub slots: u32,
    /// Most tokens of a step.
    pub max_step_tokens: u32,
    /// Prefill tokens of a step while others decode.
    pub prefill_chunk: u32,
    /// Sequences that may wait.
    pub queue_limit: u32,
    /// Share of the room for state that one model may take when nobody said how much, 0 to 1.
    pub state_share: f64,
    /// Share of a model's state that cached prefixes may hold, 0 to 1; 0 switches the prefix cache off.
    pub prefix_cache_share: f64,
    /// What cached prefixes may hold, beside what the sequences need; the share above when absent.
    pub prefix_cache_bytes: Option<u64>,
    /// For recurrent state: a snapshot every so many tokens.
    pub snapshot_every: u32,
    /// When a step is taken for hung, in milliseconds.
    pub step_deadline_ms: u64,
}

/// What a load may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Longest context.
    pub max_context: u32,
    /// For the engine.
    pub limits: EngineLimits,
    /// By class, over all ranks.
    pub memory: ModelMemory,
}

/// Decides what a model may use of `room` bytes that all its ranks share. `ranks` are the plans of its ranks.
pub fn decide(ranks: &[MemoryPlan], wishes: &Wishes, room: u64) -> Result<Decision, Failure> {
    let sum = |part: fn(&MemoryPlan) -> u64| ranks.iter().map(part).sum::<u64>();
    let weights = sum(|rank| rank.weight_bytes);
    let activations = sum(|rank| rank.activation_bytes_per_token) * u64::from(wishes.max_step_tokens)
        + sum(|rank| rank.vision_bytes);
    let fixed = sum(|rank| rank.fixed_bytes);
    let before_state = weights + activations + fixed;

    let kv = sum(|rank| rank.kv_bytes_per_token);
    let per_sequence = sum(|rank| rank.state_bytes_per_sequence);
    let made_for = ranks.iter().map(|rank| rank.max_context).min().unwrap_or(0);
    if let Some(asked) = wishes.context
        && asked > made_for
    {
        return Err(super::error::failure(
            super::error::code::INVALID,
            format!("a context of {asked} tokens was asked for, the model was made for {made_for}"),
            false,
        ));
    }
    // One sequence that fills the context, a block more than it needs, and the copy of it that is frozen.
    let need_for = |context: u32| kv * (u64::from(context) + 64) + 2 * per_sequence;
    let least = wishes.context.unwrap_or(made_for.min(LEAST_CONTEXT));
    let need = before_state + need_for(least);
    if need > room {
        return Err(does_not_fit("the model", need, room));
    }
    let cached = wishes.prefix_cache_bytes.unwrap_or(0);
    if need + cached > room {
        return Err(does_not_fit("the model with the cached prefixes it is to hold", need + cached, room));
    }
    let room_for_state = room - before_state - cached;
    // Sequences rarely fill their context: room for a quarter of the slots to do so at a time, and for one
    // context's worth of cached prefixes. Should that be too little after all, the youngest wait.
    let contexts = u64::from(wishes.slots.div_ceil(4)) + u64::from(wishes.prefix_cache_bytes.is_none());
    let wanted = contexts * need_for(wishes.context.unwrap_or(made_for));
    let fair = (room_for_state as f64 * wishes.state_share) as u64;
    let of_sequences = wanted.min(fair).max(need_for(least));
    let state = of_sequences + cached;
    let max_context = wishes.context.unwrap_or_else(|| {
        let affordable =
            (of_sequences - 2 * per_sequence).checked_div(kv).map_or(u64::MAX, |tokens| tokens - 64);
        made_for.min(u32::try_from(affordable).unwrap_or(u32::MAX))
    });
    let world = ranks.len().max(1) as u64;
    let state_per_rank = state / world;
    let limits = EngineLimits {
        max_running: wishes.slots,
        queue_limit: wishes.queue_limit,
        prefill_chunk: wishes.prefill_chunk,
        state_bytes: state_per_rank,
        kv_bytes_per_token: kv.div_ceil(world),
        state_bytes_per_sequence: per_sequence.div_ceil(world),
        prefix_cache_bytes: match wishes.prefix_cache_bytes {
            Some(bytes) => bytes / world,
            None => (state_per_rank as f64 * wishes.prefix_cache_share) as u64,
        },
        snapshot_every: wishes.snapshot_every,
        step_deadline_ms: wishes.step_deadline_ms,
    };
    let memory = ModelMemory {
        weights_bytes: weights,
        cache_bytes: state,
        activation_bytes: activations,
        runtime_bytes: fixed,
        planned_bytes: before_state + state,
        measured_bytes: 0,
    };
    Ok(Decision { max_context, limits, memory })
}

/// A device's memory as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Which.
    pub device: DeviceId,
    /// All that models may use.
    pub total: u64,
    /// Of it, free now.
    pub available: u64,
    /// Never promised.
    pub spare: u64,
}

impl Room {
    /// Of main memory.
    pub fn of_the_machine(total: u64, available: u64) -> Self {
        Self { device: "cpu-0".into(), total, available, spare: total / SPARE_SHARE }
    }

    /// Of a GPU.
    pub fn of_a_gpu(device: DeviceId, total: u64, available: u64) -> Self {
        Self { device, total, available, spare: (total / SPARE_SHARE).min(SPARE_OF_A_GPU) }
    }
}

/// The node's book of promised memory.
#[derive(Debug, Clone, Default)]
pub struct Accounts(Arc<Mutex<Vec<Promise>>>);

/// Memory of one device promised to one model or lease.
#[derive(Debug)]
struct Promise {
    id: u64,
    device: DeviceId,
    planned: u64,
    used: u64,
}

/// Memory promised to one model until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    accounts: Accounts,
    id: u64,
}

impl Accounts {
    fn with<T>(&self, body: impl FnOnce(&mut Vec<Promise>) -> T) -> T {
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes that can still be promised of a device.
    fn room_beside(promises: &[Promise], room: &Room, own: Option<u64>) -> u64 {
        let here = || promises.iter().filter(|promise| promise.device == room.device);
        let others = here().filter(|promise| Some(promise.id) != own);
        let outstanding: u64 = others.map(|promise| promise.planned.saturating_sub(promise.used)).sum();
        Self::unused(promises, room).saturating_sub(outstanding).saturating_sub(room.spare)
    }

    /// Bytes of a device nobody uses. Where the operator limits the total, what is used already counts against it.
    fn unused(promises: &[Promise], room: &Room) -> u64 {
        let here = promises.iter().filter(|promise| promise.device == room.device);
        let used: u64 = here.map(|promise| promise.used).sum();
        room.available.min(room.total.saturating_sub(used))
    }

    /// Bytes of a device that models of this node may use and nobody does.
    pub fn free(&self, room: &Room) -> u64 {
        self.with(|promises| Self::unused(promises, room))
    }

    /// Bytes of a device promised and not used yet.
    pub fn promised(&self, device: &str) -> u64 {
        self.with(|promises| {
            let here = promises.iter().filter(|promise| promise.device.as_str() == device);
            here.map(|promise| promise.planned.saturating_sub(promise.used)).sum()
        })
    }

    /// Decides and promises in one go, so that two loads never get the same bytes. `decide` is given the bytes
    /// left of each of `rooms` and answers with what it takes of each. `own` is a promise the bytes may be taken
    /// from.
    pub fn reserve<T>(
        &self,
        rooms: &[Room],
        own: Option<u64>,
        decide: impl FnOnce(&[u64]) -> Result<(T, Vec<u64>), Failure>,
    ) -> Result<(T, Reservation), Failure> {
        self.with(|promises| {
            let left: Vec<u64> = rooms.iter().map(|room| Self::room_beside(promises, room, own)).collect();
            let (decision, planned) = decide(&left)?;
            let id = promises.iter().map(|promise| promise.id).max().unwrap_or(0) + 1;
            for (room, planned) in rooms.iter().zip(planned) {
                promises.push(Promise { id, device: room.device.clone(), planned, used: 0 });
            }
            Ok((decision, Reservation { accounts: self.clone(), id }))
        })
    }
}

impl Reservation {
    /// Names the promise.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The model uses so many bytes of what it was promised of a device.
    pub fn measured(&self, device: &str, used: u64) {
        self.accounts.with(|promises| {
            let own = promises.iter_mut().filter(|promise| promise.id == self.id);
            own.filter(|promise| promise.device.as_str() == device).for_each(|promise| promise.used = used);
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.accounts.with(|promises| promises.retain(|promise| promise.id != self.id));
    }
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn of_what_the_operator_grants_the_unused_is_free() {
        let (accounts, room) = (Accounts::default(), Room::of_the_machine(1000 * MIB, 1000 * MIB));
        let reserved = accounts.reserve(std::slice::from_ref(&room), None, |_| Ok(((), vec![300 * MIB])));
        let (_, promise) = reserved.expect("there is room");
        assert_eq!(accounts.free(&room), 1000 * MIB, "promised, and not used yet");
        promise.measured("cpu-0", 200 * MIB);
        assert_eq!(accounts.free(&room), 800 * MIB);
    }

    fn plan() -> MemoryPlan {
        MemoryPlan {
            weight_bytes: 100 * MIB,
            kv_bytes_per_token: 1024,
            activation_bytes_per_token: 1000,
            max_context: 8192,
            vocab_size: 100,
            ..MemoryPlan::default()
        }
    }

    fn wishes() -> Wishes {
        Wishes {
            context: None,
            slots: 4,
            max_step_tokens: 512,
            prefill_chunk: 256,
            queue_limit: 100,
            state_share: 0.5,
            prefix_cache_share: 0.5,
            prefix_cache_bytes: None,
            snapshot_every: 0,
            step_deadline_ms: 1000,
        }
    }

    #[test]
    fn with_plenty_of_room_sequences_get_the_whole_context() {
        let decision = decide(&[plan()], &wishes(), 1000 * MIB).unwrap();
        assert_eq!(decision.max_context, 8192);
        assert_eq!(decision.limits.state_bytes, 2 * 1024 * (8192 + 64));
        assert_eq!(decision.memory.planned_bytes, 100 * MIB + 512_000 + decision.limits.state_bytes);
    }

    #[test]
    fn with_little_room_the_context_shrinks_and_one_sequence_still_fits() {
        let decision = decide(&[plan()], &wishes(), 108 * MIB).unwrap();
        assert!((512..8192).contains(&decision.max_context), "{}", decision.max_context);
        let whole = u64::from(decision.max_context + 1) * 1024;
        assert!(whole <= decision.limits.state_bytes);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_missing_bytes() {
        let refusal = decide(&[plan()], &wishes(), 90 * MIB).unwrap_err();
        assert_eq!(refusal.code, "out_of_memory");
        assert!(refusal.message.contains("11.1 MiB are missing"), "{}", refusal.message);
        let asked = Wishes { context: Some(8192), ..wishes() };
        assert!(decide(&[plan()], &asked, 105 * MIB).unwrap_err().message.contains("missing"));
        let too_long = Wishes { context: Some(9000), ..wishes() };
        let refusal = decide(&[plan()], &too_long, 1000 * MIB).unwrap_err();
        assert!(refusal.message.contains("9000") && refusal.message.contains("8192") && !refusal.retryable);
    }

    #[test]
    fn ranks_share_the_room() {
        let half = MemoryPlan { weight_bytes: 50 * MIB, kv_bytes_per_token: 512, ..plan() };
        let decision = decide(&[half, half], &wishes(), 1000 * MIB).unwrap();
        assert_eq!(decision.memory.weights_bytes, 100 * MIB);
        assert_eq!(decision.limits.kv_bytes_per_token, 512);
        assert_eq!(decision.limits.state_bytes, 2 * 512 * (8192 + 64));
    }

    #[test]
    fn cached_prefixes_get_what_was_asked_for_beside_the_sequences() {
        let usual = decide(&[plan()], &Wishes { context: Some(2048), ..wishes() }, 1000 * MIB).unwrap();
        let asked = |bytes, room| {
            let wishes = Wishes { context: Some(2048), prefix_cache_bytes: Some(bytes), ..wishes() };
            decide(&[plan()], &wishes, room)
        };
        let none = asked(0, 1000 * MIB).unwrap().limits;
        assert_eq!(none.prefix_cache_bytes, 0);
        assert_eq!(none.state_bytes, usual.limits.state_bytes / 2, "one context's worth was for the cache");
        let much = asked(300 * MIB, 1000 * MIB).unwrap().limits;
        assert_eq!((much.prefix_cache_bytes, much.state_bytes), (300 * MIB, none.state_bytes + 300 * MIB));
        let refusal = asked(300 * MIB, 300 * MIB).unwrap_err();
        assert!(refusal.message.contains("cached prefixes") && refusal.message.contains("are missing"));
    }

    #[test]
    fn promises_that_are_not_used_yet_are_not_free() {
        let accounts = Accounts::default();
        let machine = |available| vec![Room::of_the_machine(1000, available)];
        let room = |available| {
            accounts.with(|promises| Accounts::room_beside(promises, &machine(available)[0], None))
        };
        let (_, first) = accounts.reserve(&machine(1000), None, |left| Ok((left[0], vec![600]))).unwrap();
        assert_eq!(room(1000), 350);
        first.measured("cpu-0", 500);
        assert_eq!(room(500), 350, "what is used is not counted twice");
        let refused = accounts
            .reserve(&machine(500), None, |left| Err::<((), Vec<u64>), _>(does_not_fit("it", 400, left[0])));
        assert!(refused.unwrap_err().message.contains("50 bytes are missing"));
        let own = Some(first.id());
        let (_, own) = accounts.reserve(&machine(1000), own, |left| Ok((left[0], vec![0]))).unwrap();
        drop(own);
        drop(first);
        assert_eq!(room(1000), 950);
    }

    #[test]
    fn each_device_has_its_own_book() {
        let accounts = Accounts::default();
        let gpu = |number: u32| Room::of_a_gpu(format!("cuda-{number}").into(), 100 << 30, 80 << 30);
        let both = [gpu(0), gpu(1)];
        let taken = |left: &[u64]| Ok((left.to_vec(), vec![10 << 30, 20 << 30]));
        let (left, held) = accounts.reserve(&both, None, taken).unwrap();
        assert_eq!(left, [78 << 30, 78 << 30], "2 GiB of a large GPU are spare, not a twentieth");
        assert_eq!((accounts.promised("cuda-0"), accounts.promised("cuda-1")), (10 << 30, 20 << 30));
        assert_eq!(accounts.promised("cpu-0"), 0);
        held.measured("cuda-1", 15 << 30);
        assert_eq!((accounts.promised("cuda-0"), accounts.promised("cuda-1")), (10 << 30, 5 << 30));
        drop(held);
        assert_eq!(accounts.promised("cuda-0") + accounts.promised("cuda-1"), 0);
    }
}
