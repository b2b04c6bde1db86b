//! How fast the device's memory really is: what single tokens are measured against.

use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaContext, CudaStream, DriverError};

use crate::device::Found;

/// Bytes that are copied at a time; far more than any cache holds.
const BYTES: usize = 1 << 30;
/// Copies that are timed, the best of which counts.
const COPIES: usize = 10;

/// Bytes per second, read and written, of copies within the device; on a processor, within its memory. `None`
/// where it cannot be measured.
pub fn measure(device: &Found) -> Option<f64> {
    if !device.is_gpu() {
        return Some(copies_in_memory());
    }
    let ordinal = device.info.ordinal as usize;
    // The bindings panic when the driver's library is missing, which the management library has ruled out.
    match catch_unwind(|| copies_on_gpu(ordinal)) {
        Ok(Ok(rate)) => Some(rate),
        Ok(Err(error)) => {
            println!("memory bandwidth not measured: {error}");
            None
        }
        Err(_) => None,
    }
}

fn copies_on_gpu(ordinal: usize) -> Result<f64, DriverError> {
    let context = CudaContext::new(ordinal)?;
    let stream: Arc<CudaStream> = context.default_stream();
    let source = stream.alloc_zeros::<u8>(BYTES)?;
    let mut target = stream.alloc_zeros::<u8>(BYTES)?;
    let mut best = f64::INFINITY;
    for _ in 0..COPIES {
        stream.synchronize()?;
        let start = Instant::now();
        stream.memcpy_dtod(&source, &mut target)?;
        stream.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * BYTES as f64 / best)
}

fn copies_in_memory() -> f64 {
    let source = vec![1u8; BYTES / 8];
    let mut target = vec![0u8; BYTES / 8];
    let mut best = f64::INFINITY;
    for _ in 0..COPIES {
        let start = Instant::now();
        target.copy_from_slice(&source);
        best = best.min(start.elapsed().as_secs_f64());
        std::hint::black_box(&target);
    }
    2.0 * source.len() as f64 / best
}
