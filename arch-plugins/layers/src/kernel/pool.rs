//! Threads that share the work of a kernel.
//!
//! One pool per process copy of this crate. Tasks are claimed one by one, and a section waits for tasks that
//! were claimed, never for a thread to wake up: a thread the system has put aside costs its share of the
//! speed-up and no more. Idle threads look for work for some microseconds and then sleep.
//!
//! A section that finds the pool taken (another rank of the same model) does its work alone.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

type Task = dyn Fn(usize) + Sync;

/// Looks for work this often before a thread sleeps: tens of microseconds.
const IDLE_SPINS: u32 = 4_000;

/// Largest number of tasks in one section.
pub const MAX_TASKS: usize = u16::MAX as usize;

struct Pool {
    /// Section number in the upper 32 bits, then 16 bits number of tasks, 16 bits next unclaimed task. One
    /// word, so that a claim can never be made for a section that has ended.
    state: AtomicU64,
    task: UnsafeCell<Option<&'static Task>>,
    finished: AtomicUsize,
    panicked: AtomicBool,
    submit: Mutex<()>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    threads: usize,
}

// SAFETY: `task` is written only by the thread that holds `submit`, while no task of the previous section is
// claimed, and read only by a thread that holds a claim on the present one.
unsafe impl Sync for Pool {}

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Sets the number of threads, this one included. Has no effect after the first parallel section.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Ordering::Relaxed);
}

/// Threads that take part, the caller included.
pub fn threads() -> usize {
    pool().threads
}

fn configured_threads() -> usize {
    let set = THREADS.load(Ordering::Relaxed);
    if set > 0 {
        return set;
    }
    std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|&threads| threads > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let threads = configured_threads();
        let pool: &'static Pool = Box::leak(Box::new(Pool {
            state: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            submit: Mutex::new(()),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            threads,
        }));
        for index in 1..threads {
            let thread = std::thread::Builder::new().name(format!("layers-{index}"));
            if let Err(error) = thread.spawn(move || pool.work()) {
                // Sections never wait for a thread, so fewer only make them slower.
                tracing::warn!(%error, "only {index} of {threads} threads could be started");
                break;
            }
        }
        pool
    })
}

/// Calls `task` with every number below `tasks`, on several threads, and returns when all calls have.
///
/// A panic of a task comes out here.
pub fn run(tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    let alone = || (0..tasks).for_each(task);
    if tasks <= 1 {
        return alone();
    }
    let pool = pool();
    if pool.threads == 1 || tasks > MAX_TASKS {
        return alone();
    }
    let Ok(_submitting) = pool.submit.try_lock() else { return alone() };
    pool.section(tasks, task);
}

/// Splits `0..items` into runs of at least `grain` items and calls `task(start, end)` for each.
pub fn split(items: usize, grain: usize, task: &(dyn Fn(usize, usize) + Sync)) {
    if items == 0 {
        return;
    }
    // Several runs per thread, so that a late thread does not hold up the rest.
    let runs = (items / grain.max(1)).clamp(1, 4 * pool().threads);
    let length = items.div_ceil(runs);
    run(items.div_ceil(length), &|index| {
        let start = index * length;
        task(start, (start + length).min(items));
    });
}

impl Pool {
    fn section(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: the borrow outlives every use: this function returns only when all claimed tasks have
        // finished, and no task can be claimed afterwards.
        let task: &'static Task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        self.finished.store(0, Ordering::Relaxed);
        // SAFETY: `submit` is held and no claim on the previous section is open.
        unsafe { *self.task.get() = Some(task) };
        let section = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.state.store(section << 32 | (tasks as u64) << 16, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
        while self.take_one() {}
        let mut spins = 0u32;
        while self.finished.load(Ordering::Acquire) < tasks {
            spins += 1;
            if spins.is_multiple_of(1024) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        if self.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task of a parallel section panicked"));
        }
    }

    fn claim(&self) -> Option<usize> {
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            let (total, next) = (state >> 16 & 0xffff, state & 0xffff);
            if next >= total {
                return None;
            }
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(next as usize),
                Err(now) => state = now,
            }
        }
    }

    fn take_one(&self) -> bool {
        let Some(index) = self.claim() else { return false };
        // SAFETY: this thread holds a claim, so the section's owner is still waiting and leaves `task` alone.
        let task = unsafe { *self.task.get() }.expect("a section has a task");
        if catch_unwind(AssertUnwindSafe(|| task(index))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.finished.fetch_add(1, Ordering::Release);
        true
    }

    fn work(&self) {
        let mut idle = 0;
        loop {
            if self.take_one() {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < IDLE_SPINS {
                std::hint::spin_loop();
                continue;
            }
            idle = 0;
            let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let nothing = (state & 0xffff) >= (state >> 16 & 0xffff);
            if nothing {
                drop(self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner));
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for tasks in [0, 1, 2, 7, 1000] {
            for _ in 0..50 {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                run(tasks, &|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_goes_on() {
        let result = catch_unwind(|| run(8, &|index| assert_ne!(index, 5)));
        assert!(result.is_err());
        every_task_runs_once();
    }

    #[test]
    fn sections_of_several_threads_do_not_mix() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|_| every_task_runs_once()));
            }
        });
    }
}
