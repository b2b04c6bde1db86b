//! Which of the five kinds an error of CUDA is.
//!
//! Most errors of a kernel are sticky: every later call on the context fails with the same code, so the model is
//! lost and its worker has to be replaced. Running out of memory is not.

use candle_core::cuda_backend::CudaError;
use cudarc::cublas::sys::cublasStatus_t as Cublas;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult as Code;

use crate::error::Error;

/// `None` for an error that is not CUDA's.
pub(crate) fn kind(error: &candle_core::Error) -> Option<Error> {
    use candle_core::Error as Candle;
    match error {
        Candle::Cuda(inner) => inner.downcast_ref::<CudaError>().map(|cuda| of(cuda, error.to_string())),
        Candle::WithBacktrace { inner, .. }
        | Candle::WithPath { inner, .. }
        | Candle::Context { inner, .. } => kind(inner),
        _ => None,
    }
}

fn of(error: &CudaError, text: String) -> Error {
    match error {
        CudaError::Cuda(DriverError(code)) | CudaError::Load { cuda: DriverError(code), .. } => {
            driver(*code, text)
        }
        CudaError::Cublas(error) => match error.0 {
            Cublas::CUBLAS_STATUS_ALLOC_FAILED => out_of_memory(text),
            Cublas::CUBLAS_STATUS_EXECUTION_FAILED | Cublas::CUBLAS_STATUS_INTERNAL_ERROR => lost(text),
            _ => Error::Internal(text),
        },
        _ => Error::Internal(text),
    }
}

/// The kind of a driver's code.
pub(crate) fn driver(code: Code, text: String) -> Error {
    match code {
        Code::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(text),
        Code::CUDA_ERROR_NO_BINARY_FOR_GPU
        | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | Code::CUDA_ERROR_INVALID_PTX
        | Code::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => Error::Unsupported(format!(
            "this build's kernels do not run with this device and driver ({text}); install the build made for it"
        )),
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
        | Code::CUDA_ERROR_ASSERT
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_LAUNCH_TIMEOUT
        | Code::CUDA_ERROR_ECC_UNCORRECTABLE
        | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | Code::CUDA_ERROR_DEINITIALIZED
        | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
        | Code::CUDA_ERROR_SYSTEM_NOT_READY
        | Code::CUDA_ERROR_UNKNOWN => lost(text),
        _ => Error::Internal(text),
    }
}

fn out_of_memory(text: String) -> Error {
    Error::OutOfMemory(format!("the GPU has no memory left ({text}); serve fewer or shorter sequences"))
}

fn lost(text: String) -> Error {
    Error::DeviceLost(format!("the GPU's context is lost ({text}); the model has to be loaded anew"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candle(code: Code) -> candle_core::Error {
        candle_core::Error::Cuda(Box::new(CudaError::Cuda(DriverError(code)))).bt()
    }

    #[test]
    fn sticky_errors_lose_the_device_and_want_of_memory_does_not() {
        let kind = |code| kind(&candle(code).context("while it computed"));
        assert!(matches!(kind(Code::CUDA_ERROR_OUT_OF_MEMORY), Some(Error::OutOfMemory(_))));
        assert!(matches!(kind(Code::CUDA_ERROR_ILLEGAL_ADDRESS), Some(Error::DeviceLost(_))));
        assert!(matches!(kind(Code::CUDA_ERROR_NO_BINARY_FOR_GPU), Some(Error::Unsupported(_))));
        assert!(matches!(kind(Code::CUDA_ERROR_INVALID_VALUE), Some(Error::Internal(_))));
    }
}
