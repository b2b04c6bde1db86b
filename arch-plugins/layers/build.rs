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

/// `OUT_DIR/gated_delta_net.ptx`, for the compute capability the environment names as it does for candle's kernels.
#[cfg(feature = "cuda")]
fn kernels() {
    println!("cargo::rerun-if-changed=cuda/gated_delta_net.cu");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    let built = cudaforge::KernelBuilder::new()
        .source_files(["cuda/gated_delta_net.cu"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx();
    if let Err(error) = built {
        println!("cargo::error=cuda/gated_delta_net.cu was not compiled: {error}");
    }
}
