//! Compiles the own GPU kernels to PTX, when the build is for a GPU.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=NEURON_BUILD");
    // Set by a build that links with stand-ins for the CUDA libraries.
    println!("cargo::rerun-if-env-changed=NEURON_LINK_SHIMS");
    println!("cargo::rustc-check-cfg=cfg(link_shims)");
    if std::env::var_os("NEURON_LINK_SHIMS").is_some() {
        println!("cargo::rustc-cfg=link_shims");
    }
    #[cfg(feature = "cuda")]
    kernels();
}

/// A `.ptx` per file of `cuda/` into `OUT_DIR`, for the compute capability the environment names as it does for candle's kernels.
#[cfg(feature = "cuda")]
fn kernels() {
    const FILES: [&str; 2] = ["cuda/gated_delta_net.cu", "cuda/decode.cu"];
    FILES.iter().for_each(|file| println!("cargo::rerun-if-changed={file}"));
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    let built = cudaforge::KernelBuilder::new().source_files(FILES).arg("-std=c++17").arg("-O3").build_ptx();
    if let Err(error) = built {
        println!("cargo::error=the kernels were not compiled: {error}");
    }
}
