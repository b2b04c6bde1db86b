//! Ranks on GPUs, through NCCL.
//!
//! Sums and gathers are put on the stream of the rank's device, like any other work; the host does not wait for them. What
//! the ranks agree on as programs (to stop, to give up) goes through the meeting in the host's memory that every group
//! has besides.
//!
//! A rank that gives up leaves kernels of the others waiting for it on their devices for ever. Aborting therefore ends the
//! communicators of *all* ranks, from whichever thread; their waiting kernels return, with nothing in them worth
//! having, and [`Communicator::check`] tells before it is believed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::{CudaDevice, CudaStorage, DType, Device, Storage, Tensor};
use cudarc::driver::{DevicePtr, DevicePtrMut};
use cudarc::nccl::result::{self, NcclError};
use cudarc::nccl::safe::{Id, NcclType};
use cudarc::nccl::sys;

use super::Communicator;
use crate::error::{Error, Result};

/// A rank's communicator, until it is ended.
struct Handle(Mutex<Option<sys::ncclComm_t>>);

// SAFETY: NCCL allows a communicator to be aborted from any thread; every other use is behind the lock.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Option<sys::ncclComm_t>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, once.
    fn end(&self) {
        if let Some(comm) = self.lock().take() {
            // SAFETY: it was made by NCCL, and nobody else can have it any more.
            let _ = unsafe { result::comm_abort(comm) };
        }
    }
}

/// Handles of all ranks, by group.
type Groups = HashMap<[u8; 128], Vec<Arc<Handle>>>;

/// The groups of this process.
static GROUPS: LazyLock<Mutex<Groups>> = LazyLock::new(Mutex::default);

fn groups() -> MutexGuard<'static, Groups> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls of [`Communicator::polled`] for one that meets the others: on a GPU a layer takes less time than a meeting of the
/// threads that feed it.
const POLLS: usize = 32;

/// One rank of a group.
pub(super) struct Ring {
    handle: Arc<Handle>,
    group: [u8; 128],
    device: CudaDevice,
    meeting: Arc<dyn Communicator>,
    polls: AtomicUsize,
}

impl Ring {
    /// Opens a communicator over the ranks of `meeting`. Rank 0 makes NCCL's name of the group; all ranks stop here when one of
    /// them cannot.
    pub(super) fn join(
        device: &CudaDevice,
        group: &[u8; 128],
        meeting: Arc<dyn Communicator>,
    ) -> Result<Arc<dyn Communicator>> {
        let present = result::get_nccl_version().map_err(failed);
        if meeting.any(present.is_err())? {
            return Err(present
                .err()
                .unwrap_or_else(|| Error::Unsupported("another rank has no NCCL".into())));
        }
        let name = if meeting.rank() == 0 { Id::new().map_err(failed) } else { Ok(Id::uninit([0; 128])) };
        if meeting.any(name.is_err())? {
            return Err(name.err().unwrap_or_else(|| Error::Unsupported("rank 0 has no NCCL".into())));
        }
        let name = shared(&name?, &*meeting)?;
        let mut comm: sys::ncclComm_t = std::ptr::null_mut();
        device.cuda_stream().context().bind_to_thread().map_err(|error| {
            crate::device::failure::driver(error.0, format!("the GPU cannot be used: {error:?}"))
        })?;
        // SAFETY: the place is written before it is read; the name is rank 0's, and every rank calls this once.
        unsafe {
            let name = sys::ncclUniqueId { internal: *name.internal() };
            let (world, rank) = (meeting.world() as i32, meeting.rank() as i32);
            result::comm_init_rank(&raw mut comm, world, name, rank).map_err(failed)?;
        }
        let handle = Arc::new(Handle(Mutex::new(Some(comm))));
        groups().entry(*group).or_default().push(handle.clone());
        Ok(Arc::new(Self {
            handle,
            group: *group,
            device: device.clone(),
            meeting,
            polls: AtomicUsize::new(0),
        }))
    }

    /// Puts one collective on the stream: `x` as a slice of `T`, and room for `times` as many values.
    fn run<T>(&self, x: &Tensor, times: usize, what: Collective) -> Result<Tensor>
    where
        T: NcclType + candle_core::cuda_backend::CudaDType + cudarc::driver::DeviceRepr,
    {
        let x = x.contiguous()?;
        let count = x.elem_count();
        // SAFETY: the collective writes all of it.
        let mut out = unsafe { self.device.alloc::<T>(count * times) }?;
        let stream = self.device.cuda_stream();
        {
            let (storage, layout) = x.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { return Err(elsewhere()) };
            let slice = storage.as_cuda_slice::<T>()?;
            let slice = slice.slice(layout.start_offset()..layout.start_offset() + count);
            let (from, _read) = slice.device_ptr(&stream);
            let (to, _written) = out.device_ptr_mut(&stream);
            let handle = self.handle.lock();
            let comm = handle.ok_or_else(parted)?;
            let (from, to, stream) =
                (from as *const _, to as *mut _, stream.cu_stream() as sys::cudaStream_t);
            // SAFETY: both are memory of this rank's device of so many values, and live until the stream is past this.
            unsafe {
                match what {
                    Collective::Sum => {
                        let sum = sys::ncclRedOp_t::ncclSum;
                        result::all_reduce(from, to, count, T::as_nccl_type(), sum, comm, stream)
                    }
                    Collective::Gather => {
                        result::all_gather(from, to, count, T::as_nccl_type(), comm, stream)
                    }
                }
            }
            .map_err(failed)?;
        }
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, self.device.clone()));
        let shape = if times == 1 { x.shape().clone() } else { (times, count).into() };
        Ok(Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false))
    }

    fn of_dtype(&self, x: &Tensor, times: usize, what: Collective) -> Result<Tensor> {
        match x.dtype() {
            DType::F32 => self.run::<f32>(x, times, what),
            DType::BF16 => self.run::<half::bf16>(x, times, what),
            DType::F16 => self.run::<half::f16>(x, times, what),
            other => Err(Error::Internal(format!("ranks do not exchange {other:?}"))),
        }
    }
}

#[derive(Clone, Copy)]
enum Collective {
    Sum,
    Gather,
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut groups = groups();
        if let Some(handles) = groups.get_mut(&self.group) {
            handles.retain(|handle| !Arc::ptr_eq(handle, &self.handle));
            if handles.is_empty() {
                groups.remove(&self.group);
            }
        }
        drop(groups);
        self.handle.end();
    }
}

impl Communicator for Ring {
    fn rank(&self) -> usize {
        self.meeting.rank()
    }

    fn world(&self) -> usize {
        self.meeting.world()
    }

    fn all_reduce_sum(&self, x: &Tensor) -> Result<Tensor> {
        match x.device() {
            Device::Cpu => self.meeting.all_reduce_sum(x),
            _ => self.of_dtype(x, 1, Collective::Sum),
        }
    }

    fn all_gather(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return self.meeting.all_gather(x);
        }
        let (world, (rows, columns)) = (self.world(), crate::slice::rows_columns(x)?);
        let all = self.of_dtype(x, world, Collective::Gather)?;
        let all = all.reshape((world, rows, columns))?.transpose(0, 1)?.contiguous()?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last *= world;
        }
        Ok(all.reshape(shape)?)
    }

    fn abort(&self, reason: &str) {
        self.meeting.abort(reason);
        let handles = groups().get(&self.group).cloned().unwrap_or_default();
        for handle in handles {
            handle.end();
        }
    }

    fn polled(&self, flag: bool) -> Result<bool> {
        match self.polls.fetch_add(1, Ordering::Relaxed) % POLLS {
            0 => self.any(flag),
            _ => Ok(false),
        }
    }

    fn check(&self) -> Result<()> {
        // A rank that unloads ends its own communicator only: this one is gone when somebody gave up.
        match *self.handle.lock() {
            Some(_) => Ok(()),
            None => Err(parted()),
        }
    }
}

/// Rank 0's name of the group, on every rank.
fn shared(name: &Id, meeting: &dyn Communicator) -> Result<Id> {
    let bytes: Vec<f32> = name.internal().iter().map(|&byte| f32::from(byte as u8)).collect();
    let sum: Vec<f32> = meeting.all_reduce_sum(&Tensor::from_vec(bytes, 128, &Device::Cpu)?)?.to_vec1()?;
    let mut all = [0; 128];
    for (byte, sum) in all.iter_mut().zip(sum) {
        *byte = sum as u8 as core::ffi::c_char;
    }
    Ok(Id::uninit(all))
}

fn parted() -> Error {
    Error::DeviceLost(
        "another rank of this model has failed, and what it shared with this one is gone".into(),
    )
}

fn elsewhere() -> Error {
    Error::Internal("a tensor of another device was brought to the GPUs' meeting".into())
}

fn failed(error: NcclError) -> Error {
    Error::Unsupported(format!("NCCL (libnccl.so.2) cannot be used: {:?}", error.0))
}
