//! Believing a way between devices only after it has been seen to work.
//!
//! Peer copies that are switched on and do not work are a known fault of boxes with an IOMMU in the wrong mode: nothing
//! fails, and sums are wrong. Before a model is loaded every rank therefore sends numbers it can check. All ranks agree on
//! the outcome; when it is bad they go on through the host's memory, and say so.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::Communicator;
use crate::error::{Error, Result};

/// Numbers sent by each rank: one, a few, and enough for every way a library has of sending.
const SIZES: [usize; 3] = [1, 1000, 1 << 20];

/// Opens a way between devices and checks it. `meeting` are the same ranks in the host's memory, which the fastest
/// way falls back to; `open` is called on all ranks or on none.
pub(super) fn choose(
    meeting: Arc<dyn Communicator>,
    open: impl FnOnce(Arc<dyn Communicator>) -> Result<Arc<dyn Communicator>>,
    device: &Device,
) -> Result<Arc<dyn Communicator>> {
    let opened = open(meeting.clone());
    // A rank that has lost its device does not go on by another way.
    if let Err(lost @ (Error::DeviceLost(_) | Error::OutOfMemory(_))) = opened {
        meeting.abort(&lost.to_string());
        return Err(lost);
    }
    if meeting.any(opened.is_err())? {
        let reason = opened.err().map_or("another rank could not open it".into(), |error| error.to_string());
        announce(&*meeting, &reason);
        return Ok(meeting);
    }
    let way = opened?;
    let seen = match check(&*way, device) {
        Ok(seen) => seen,
        Err(error) => {
            // The others wait for this rank on their devices.
            way.abort(&error.to_string());
            return Err(error);
        }
    };
    if meeting.any(seen.is_some())? {
        announce(&*meeting, &seen.unwrap_or_else(|| "another rank saw it fail".into()));
        return Ok(meeting);
    }
    Ok(way)
}

fn announce(meeting: &dyn Communicator, reason: &str) {
    tracing::warn!(
        rank = meeting.rank(),
        reason,
        "GPUs cannot reach each other; what they exchange goes through the host's memory, which is slow"
    );
}

/// Sums and gathers numbers whose results are known, exactly. Every rank makes every call, whatever it has seen: the
/// others would wait for it. Says what came back wrong first.
fn check(way: &dyn Communicator, device: &Device) -> Result<Option<String>> {
    let mut seen = None;
    for dtype in [DType::F32, DType::BF16] {
        for size in SIZES {
            let sum = way.all_reduce_sum(&pattern(way.rank(), size, dtype, device)?)?;
            let all = way.all_gather(&pattern(way.rank(), size, dtype, device)?)?;
            let (sum, all) = (numbers_of(&sum)?, numbers_of(&all)?);
            let parts: Vec<Vec<f32>> = (0..way.world()).map(|rank| numbers(rank, size)).collect();
            let expected: Vec<f32> = (0..size).map(|i| parts.iter().map(|part| part[i]).sum()).collect();
            for (what, good) in [("adding up", sum == expected), ("gathering", all == parts.concat())] {
                if !good && seen.is_none() {
                    seen = Some(format!("a test of {size} numbers ({dtype:?}) came back wrong from {what}"));
                }
            }
        }
    }
    Ok(seen)
}

/// Small whole numbers, different on each rank; their sums are exact in bf16 for up to sixteen ranks.
fn numbers(rank: usize, size: usize) -> Vec<f32> {
    (0..size).map(|i| ((i * 7 + rank * 3) % 13) as f32).collect()
}

fn pattern(rank: usize, size: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(numbers(rank, size), (1, size), device)?.to_dtype(dtype)?)
}

fn numbers_of(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local;

    /// What becomes of sums on the way, by the number of values in them.
    type Corrupt = fn(usize) -> f64;

    /// A way between devices that a test can break.
    struct Fake {
        meeting: Arc<dyn Communicator>,
        corrupt: Corrupt,
    }

    impl Communicator for Fake {
        fn rank(&self) -> usize {
            self.meeting.rank()
        }
        fn world(&self) -> usize {
            self.meeting.world()
        }
        fn all_reduce_sum(&self, x: &Tensor) -> Result<Tensor> {
            Ok((self.meeting.all_reduce_sum(x)? + (self.corrupt)(x.elem_count()))?)
        }
        fn all_gather(&self, x: &Tensor) -> Result<Tensor> {
            self.meeting.all_gather(x)
        }
        fn abort(&self, reason: &str) {
            self.meeting.abort(reason);
        }
    }

    /// The sum of a number neither way knows, after the way was chosen, on each of three ranks; and what was said.
    fn chosen(id: u8, of_rank: [Option<Corrupt>; 3]) -> Vec<(f32, Vec<String>)> {
        std::thread::scope(|scope| {
            let ranks: Vec<_> = of_rank
                .into_iter()
                .enumerate()
                .map(|(rank, corrupt)| {
                    scope.spawn(move || {
                        plugin_sdk::testing::recording(|| {
                            let meeting = local(&[id; 128], rank, 3).unwrap();
                            let open = |meeting: Arc<dyn Communicator>| -> Result<Arc<dyn Communicator>> {
                                match corrupt {
                                    Some(corrupt) => Ok(Arc::new(Fake { meeting, corrupt })),
                                    None => Err(Error::Unsupported("there is no library".into())),
                                }
                            };
                            let way = choose(meeting, open, &Device::Cpu).unwrap();
                            let x = Tensor::new(&[[0.5f32; 77]], &Device::Cpu).unwrap();
                            way.all_reduce_sum(&x).unwrap().to_vec2::<f32>().unwrap()[0][0]
                        })
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// Right for every size the test sends; wrong for others, so that it can be told which way was taken.
    fn sound(size: usize) -> f64 {
        f64::from(u8::from(!SIZES.contains(&size)))
    }

    #[test]
    fn a_way_that_works_is_taken() {
        for (sum, said) in chosen(90, [Some(sound), Some(sound), Some(sound)]) {
            assert_eq!((sum, said.len()), (2.5, 0), "{said:?}");
        }
    }

    #[test]
    fn all_ranks_leave_a_way_that_one_of_them_saw_fail() {
        fn large_ones_break(size: usize) -> f64 {
            f64::from(u8::from(size > 1000))
        }
        for (sum, said) in chosen(91, [Some(sound), Some(large_ones_break), Some(sound)]) {
            assert_eq!(sum, 1.5, "{said:?}");
            assert!(said[0].contains("through the host's memory"), "{said:?}");
        }
    }

    #[test]
    fn no_library_on_any_rank_is_announced_too() {
        for (sum, said) in chosen(92, [None, None, None]) {
            assert_eq!(sum, 1.5);
            assert!(said[0].contains("there is no library"), "{said:?}");
        }
    }
}
