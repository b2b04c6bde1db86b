//! Which CUDA libraries are in use, and which are missing, in sentences.
//!
//! A build for GPUs links with stand-ins that open the real libraries when they are first called (see the decision
//! record on link shims). They know where they looked and what they found; the bindings only see a status. A build
//! that was linked in another way has nobody to ask, and says nothing here.

/// Why the driver cannot be used, if its library is missing or too old.
pub(crate) fn driver() -> Option<String> {
    shims::driver().into_iter().find_map(shims::lacking)
}

/// Why the runtime libraries cannot be used, if one that every model needs is missing or too old.
pub(crate) fn runtime() -> Option<String> {
    shims::runtime().into_iter().find_map(shims::lacking)
}

/// The files in use, one sentence each.
pub(crate) fn in_use() -> Vec<String> {
    shims::driver().into_iter().chain(shims::runtime()).map(shims::sentence).collect()
}

#[cfg(link_shims)]
mod shims {
    use std::ffi::{CStr, c_char, c_int};

    /// What a stand-in tells of its library; the layout is that of `struct neuron_shim` in `xtask/src/cuda/shim.c`.
    #[repr(C)]
    pub(super) struct Shim {
        name: *const c_char,
        path: *const c_char,
        sentence: *const c_char,
        found: c_int,
        needed: c_int,
    }

    unsafe extern "C" {
        fn neuron_shim_cuda_report() -> *const Shim;
        fn neuron_shim_cublas_report() -> *const Shim;
        #[link_name = "neuron_shim_cublasLt_report"]
        fn neuron_shim_cublas_lt_report() -> *const Shim;
        fn neuron_shim_curand_report() -> *const Shim;
    }

    pub(super) fn driver() -> [&'static Shim; 1] {
        // SAFETY: a stand-in returns its own static data, which never changes once the library was looked for.
        unsafe { [&*neuron_shim_cuda_report()] }
    }

    pub(super) fn runtime() -> [&'static Shim; 3] {
        // SAFETY: as in `driver`.
        unsafe {
            [&*neuron_shim_cublas_lt_report(), &*neuron_shim_cublas_report(), &*neuron_shim_curand_report()]
        }
    }

    pub(super) fn lacking(shim: &Shim) -> Option<String> {
        let old = shim.found != 0 && shim.found < shim.needed;
        (shim.path.is_null() || old).then(|| sentence(shim))
    }

    pub(super) fn sentence(shim: &Shim) -> String {
        // SAFETY: a stand-in's texts are static, and end with a zero.
        let (name, sentence) = unsafe { (CStr::from_ptr(shim.name), CStr::from_ptr(shim.sentence)) };
        format!("{}: {}", name.to_string_lossy(), sentence.to_string_lossy())
    }
}

#[cfg(not(link_shims))]
mod shims {
    pub(super) enum Shim {}

    pub(super) fn driver() -> [&'static Shim; 0] {
        []
    }

    pub(super) fn runtime() -> [&'static Shim; 0] {
        []
    }

    pub(super) fn lacking(shim: &Shim) -> Option<String> {
        match *shim {}
    }

    pub(super) fn sentence(shim: &Shim) -> String {
        match *shim {}
    }
}
