//! The builds a plugin can be made for.

/// A GPU generation: one compilation of the plugins.
#[derive(Debug)]
pub struct Generation {
    /// Name of the build.
    pub name: &'static str,
    /// What the kernels' build scripts are told to compile for.
    pub compute_cap: &'static str,
    /// Machine code in the result, as the compiler names it.
    pub machine_code: &'static [&'static str],
    /// Target of the PTX in the result.
    pub ptx: &'static str,
    /// Compute capabilities whose machine code is inside or runs on from there.
    pub accepts: &'static [&'static str],
    /// Whether machine code for more than one target is asked for, which build scripts cannot do by themselves.
    pub fat: bool,
}

/// The generations, oldest first.
pub const GENERATIONS: &[Generation] = &[
    Generation {
        name: "ampere",
        compute_cap: "80",
        machine_code: &["sm_80"],
        ptx: "sm_80",
        accepts: &["8.0", "8.6", "8.7", "8.9"],
        fat: false,
    },
    Generation {
        name: "ada",
        compute_cap: "89",
        machine_code: &["sm_89"],
        ptx: "sm_89",
        accepts: &["8.9"],
        fat: false,
    },
    Generation {
        name: "hopper",
        compute_cap: "90",
        machine_code: &["sm_90a"],
        ptx: "sm_90a",
        accepts: &["9.0"],
        fat: false,
    },
    Generation {
        name: "blackwell",
        compute_cap: "100",
        machine_code: &["sm_100f", "sm_120f"],
        ptx: "sm_100",
        accepts: &["10.0", "10.3", "12.0", "12.1"],
        fat: true,
    },
];

/// x86-64 level of the host code in a GPU build: a recent card may sit in an old machine.
pub const GPU_CPU_LEVEL: u32 = 2;

/// What a plugin is compiled for.
#[derive(Clone, Copy, Debug)]
pub enum Build {
    /// An x86-64 level.
    Cpu(u32),
    /// A GPU generation.
    Gpu(&'static Generation),
}

impl Build {
    /// The build of this name.
    pub fn named(name: &str) -> Option<Self> {
        if let Some(generation) = GENERATIONS.iter().find(|generation| generation.name == name) {
            return Some(Self::Gpu(generation));
        }
        let level = name.strip_prefix("cpu-v")?.parse().ok()?;
        (2..=4).contains(&level).then_some(Self::Cpu(level))
    }

    /// Every build, processors first.
    pub fn all() -> Vec<Self> {
        (2..=4).map(Self::Cpu).chain(GENERATIONS.iter().map(Self::Gpu)).collect()
    }

    /// Name of the folder and of the build in the ABI.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(level) => format!("cpu-v{level}"),
            Self::Gpu(generation) => generation.name.to_owned(),
        }
    }

    /// Lowest x86-64 level that the result runs on.
    pub fn cpu_level(&self) -> u32 {
        match self {
            Self::Cpu(level) => *level,
            Self::Gpu(_) => GPU_CPU_LEVEL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Build;

    #[test]
    fn a_build_is_known_by_its_own_name_and_by_no_other() {
        for build in Build::all() {
            assert_eq!(Build::named(&build.name()).map(|found| found.name()), Some(build.name()));
        }
        for name in ["cpu-v1", "cpu-v5", "cpu-v", "volta", ""] {
            assert!(Build::named(name).is_none(), "{name}");
        }
    }
}
