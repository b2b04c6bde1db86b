//! What this machine's processor can run.

/// The highest x86-64 level of this processor that a plugin can be built for.
pub fn cpu_build() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v3 = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
        let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq");
        if v4 && has!("avx512vl") {
            return "cpu-v4";
        }
        if v3 {
            return "cpu-v3";
        }
    }
    "cpu-v2"
}
