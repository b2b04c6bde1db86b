//! Ranks of one model talking to each other.
//!
//! A layer adds up or gathers over ranks through [`Communicator`] and does not know what is behind it. Every
//! rank makes the same calls in the same order. A rank that fails aborts the group, so that no other waits
//! for it: after that every call fails, and the model has to be loaded anew.
//!
//! Ranks on the CPU meet in memory. Ranks on GPUs talk through NCCL, and where that cannot be had or
//! gives wrong answers they meet in the host's memory too, which is announced because it is slow.

#[cfg(feature = "cuda")]
mod nccl;
#[cfg(any(feature = "cuda", test))]
mod verified;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::slice;

/// The ranks of one model.
pub trait Communicator: Send + Sync {
    /// This rank.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world(&self) -> usize;
    /// Elementwise sum over ranks, in order of ranks: the same bits on every rank.
    fn all_reduce_sum(&self, x: &Tensor) -> Result<Tensor>;
    /// Concatenation over ranks along the last dimension.
    fn all_gather(&self, x: &Tensor) -> Result<Tensor>;
    /// Wakes every waiting rank with an error; all later calls fail.
    fn abort(&self, reason: &str);

    /// `Err` once what this rank waited for on its device was ended by another rank's failure. To be asked when results have
    /// arrived and before they are believed: such results are nobody's answer. In memory a failed exchange says so itself.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// As [`Communicator::any`], for a wish that may wait: most calls may answer "no" without asking the others. All ranks
    /// make as many calls.
    fn polled(&self, flag: bool) -> Result<bool> {
        self.any(flag)
    }

    /// Does any rank say so? The same answer on every rank.
    fn any(&self, flag: bool) -> Result<bool> {
        if self.world() == 1 {
            return Ok(flag);
        }
        let flags = self.all_reduce_sum(&Tensor::new(&[f32::from(u8::from(flag))], &Device::Cpu)?)?;
        Ok(flags.to_vec1::<f32>()?[0] > 0.0)
    }
}

/// A model on one rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn world(&self) -> usize {
        1
    }
    fn all_reduce_sum(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn all_gather(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn abort(&self, _reason: &str) {}
}

/// Ranks that are threads of one process.
struct Meeting {
    world: usize,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    joined: Vec<bool>,
    /// What each rank brought to the present round.
    brought: Vec<Option<Vec<f32>>>,
    /// Number of finished rounds.
    round: u64,
    /// What the last finished round came to. It is replaced only when every rank has come to the next
    /// round, hence has taken it.
    outcome: Arc<Vec<Vec<f32>>>,
    aborted: Option<String>,
}

/// Groups that some rank has yet to join. A rank that left meanwhile has left its abort behind for those who
/// come later.
static MEETINGS: LazyLock<Mutex<HashMap<[u8; 128], Arc<Meeting>>>> = LazyLock::new(Mutex::default);

/// Joins the ranks that share `id`, each with the device it computes on, by the fastest way that works.
pub fn join(device: &Device, id: &[u8; 128], rank: usize, world: usize) -> Result<Arc<dyn Communicator>> {
    let meeting = local(id, rank, world)?;
    #[cfg(feature = "cuda")]
    if let (true, Device::Cuda(cuda)) = (world > 1, device) {
        return verified::choose(meeting, |meeting| nccl::Ring::join(cuda, id, meeting), device);
    }
    let _ = device;
    Ok(meeting)
}

/// Joins the ranks that share `id` as `rank` of `world` in the host's memory. Ranks may come in any order and at any time; an id
/// serves for one group.
pub fn local(id: &[u8; 128], rank: usize, world: usize) -> Result<Arc<dyn Communicator>> {
    if world <= 1 {
        return Ok(Arc::new(Solo));
    }
    let mut meetings = MEETINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let meeting = meetings.entry(*id).or_insert_with(|| {
        let table = Table { joined: vec![false; world], brought: vec![None; world], ..Table::default() };
        Arc::new(Meeting { world, table: Mutex::new(table), changed: Condvar::new() })
    });
    let meeting = meeting.clone();
    let mut table = meeting.table();
    if meeting.world != world || rank >= world || table.joined[rank] {
        return Err(Error::Internal(format!("rank {rank} of {world} cannot join this group of ranks")));
    }
    table.joined[rank] = true;
    if table.joined.iter().all(|joined| *joined) {
        meetings.remove(id);
    }
    drop(table);
    Ok(Arc::new(Local { meeting, rank }))
}

impl Meeting {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings `values` and leaves with what all ranks brought, in order of ranks. Sums are made once, by the
    /// last to come, when `sum` is set.
    fn exchange(&self, rank: usize, values: Vec<f32>, sum: bool) -> Result<Arc<Vec<Vec<f32>>>> {
        let mut table = self.table();
        table.check()?;
        let round = table.round;
        table.brought[rank] = Some(values);
        if table.brought.iter().all(Option::is_some) {
            let all: Vec<_> = table.brought.iter_mut().filter_map(Option::take).collect();
            table.outcome = Arc::new(if sum { vec![add_up(all)?] } else { all });
            table.round += 1;
            self.changed.notify_all();
        }
        while table.round == round {
            table.check()?;
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(table.outcome.clone())
    }

    fn abort(&self, reason: &str) {
        self.table().aborted.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_all();
    }
}

impl Table {
    fn check(&self) -> Result<()> {
        match &self.aborted {
            Some(reason) => {
                Err(Error::DeviceLost(format!("another rank of this model has failed: {reason}")))
            }
            None => Ok(()),
        }
    }
}

fn add_up(all: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    let mut all = all.into_iter();
    let mut sum = all.next().unwrap_or_default();
    for values in all {
        if values.len() != sum.len() {
            return Err(Error::Internal("ranks brought different numbers of values".into()));
        }
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += value;
        }
    }
    Ok(sum)
}

/// One rank's seat in a [`Meeting`].
struct Local {
    meeting: Arc<Meeting>,
    rank: usize,
}

impl Drop for Local {
    fn drop(&mut self) {
        self.meeting.abort("it has been unloaded");
    }
}

impl Communicator for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.meeting.world
    }

    fn all_reduce_sum(&self, x: &Tensor) -> Result<Tensor> {
        let home = x.to_device(&Device::Cpu)?;
        let sum = self.meeting.exchange(self.rank, slice::to_vec(&home)?, true)?;
        Ok(slice::tensor(sum[0].clone(), x.dims(), x.dtype())?.to_device(x.device())?)
    }

    fn all_gather(&self, x: &Tensor) -> Result<Tensor> {
        let home = x.to_device(&Device::Cpu)?;
        let parts = self.meeting.exchange(self.rank, slice::to_vec(&home)?, false)?;
        let (rows, columns) = slice::rows_columns(x)?;
        let mut values = Vec::with_capacity(rows * columns * parts.len());
        for row in 0..rows {
            for part in parts.iter() {
                let part = part.get(row * columns..(row + 1) * columns);
                values.extend_from_slice(
                    part.ok_or_else(|| Error::Internal("ranks brought different numbers of values".into()))?,
                );
            }
        }
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last *= parts.len();
        }
        Ok(slice::tensor(values, shape, x.dtype())?.to_device(x.device())?)
    }

    fn abort(&self, reason: &str) {
        self.meeting.abort(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> [u8; 128] {
        [byte; 128]
    }

    #[test]
    fn every_rank_gets_the_same_sum_and_the_whole() {
        std::thread::scope(|scope| {
            for rank in 0..3 {
                scope.spawn(move || {
                    let comm = local(&id(1), rank, 3).unwrap();
                    for round in 0..200 {
                        let x =
                            Tensor::new(&[[rank as f32, round as f32], [0.1, 0.2]], &Device::Cpu).unwrap();
                        let sum = comm.all_reduce_sum(&x).unwrap().to_vec2::<f32>().unwrap();
                        assert_eq!(sum[0], [3.0, 3.0 * round as f32]);
                        let all = comm.all_gather(&x).unwrap().to_vec2::<f32>().unwrap();
                        assert_eq!(all[0][..3], [0.0, round as f32, 1.0]);
                        assert_eq!(all[1], [0.1, 0.2, 0.1, 0.2, 0.1, 0.2]);
                    }
                    comm
                });
            }
        });
    }

    #[test]
    fn a_failed_rank_wakes_the_others() {
        for leave in [true, false] {
            let id = id(2 + u8::from(leave));
            std::thread::scope(|scope| {
                let waiting = scope.spawn(move || {
                    let comm = local(&id, 0, 2).unwrap();
                    comm.all_reduce_sum(&Tensor::new(&[1f32], &Device::Cpu).unwrap())
                });
                let comm = local(&id, 1, 2).unwrap();
                if leave {
                    drop(comm);
                } else {
                    comm.abort("out of memory");
                }
                assert!(matches!(waiting.join().unwrap(), Err(Error::DeviceLost(_))));
            });
        }
    }
}
