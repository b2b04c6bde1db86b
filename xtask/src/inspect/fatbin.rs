//! Fat binaries: the containers that CUDA's compiler puts machine code and PTX for several GPUs into.
//!
//! The format is not published. What is read here was found by comparing containers of known contents with what
//! `cuobjdump` says of them: a container is a header (magic number, version, size of the header, size of what
//! follows) and a list of entries, each with a header of its own that tells kind, size, target and whether the
//! target is one card (`a`) or one family (`f`).

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// First four bytes of a container.
const MAGIC: u32 = 0xBA55_ED50;
/// Bytes of a container's header that are read.
const CONTAINER: usize = 16;
/// Bytes of an entry's header that are read.
const ENTRY: usize = 48;
const KIND_PTX: u16 = 1;
const KIND_MACHINE_CODE: u16 = 2;
/// Among an entry's flags: the code is for this very card.
const ONE_CARD: u64 = 1 << 20;
/// Among an entry's flags: the code is for this family of cards.
const ONE_FAMILY: u64 = 1 << 21;

/// Targets found in a section.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Of machine code.
    pub machine_code: BTreeSet<String>,
    /// Of PTX.
    pub ptx: BTreeSet<String>,
}

/// Reads every container of a section.
pub fn read(section: &[u8]) -> Result<Code> {
    let mut code = Code::default();
    let mut at = 0;
    while at + CONTAINER <= section.len() {
        if number::<4>(section, at) != u64::from(MAGIC) {
            at += 4; // containers are aligned, with nothing in between
            continue;
        }
        let header = number::<2>(section, at + 6) as usize;
        let size = number::<8>(section, at + 8) as usize;
        let start = at.saturating_add(header);
        let end = start.saturating_add(size);
        if header < CONTAINER || end > section.len() {
            bail!("a fat binary at byte {at} is longer than its section");
        }
        entries(&section[start..end], &mut code)?;
        at = end;
    }
    Ok(code)
}

fn entries(container: &[u8], code: &mut Code) -> Result<()> {
    let mut at = 0;
    while at + ENTRY <= container.len() {
        let kind = number::<2>(container, at) as u16;
        let header = number::<4>(container, at + 4) as usize;
        let size = number::<8>(container, at + 8) as usize;
        let capability = number::<4>(container, at + 28);
        let flags = number::<8>(container, at + 40);
        let suffix = match (flags & ONE_CARD != 0, flags & ONE_FAMILY != 0) {
            (true, _) => "a",
            (false, true) => "f",
            (false, false) => "",
        };
        let target = format!("sm_{capability}{suffix}");
        match kind {
            KIND_PTX => code.ptx.insert(target.clone()),
            KIND_MACHINE_CODE => code.machine_code.insert(target.clone()),
            other => bail!("a fat binary holds code of the unknown kind {other} for {target}"),
        };
        let next = at.saturating_add(header).saturating_add(size);
        if header < ENTRY || next > container.len() {
            bail!("code for {target} is longer than the fat binary it lies in");
        }
        at = next;
    }
    Ok(())
}

/// A little-endian number of `N` bytes; 0 beyond the end.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let Some(bytes) = bytes.get(at..at + N) else { return 0 };
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as the compiler writes it, with a payload of 16 bytes.
    fn entry(kind: u16, capability: u32, flags: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&64u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&16u64.to_le_bytes());
        bytes[28..32].copy_from_slice(&capability.to_le_bytes());
        bytes[40..48].copy_from_slice(&flags.to_le_bytes());
        bytes.extend([0xAA; 16]);
        bytes
    }

    fn container(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(16u16.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn every_entry_of_every_container_is_found() {
        // Flags as CUDA 13.0 writes them.
        let first = container(&[entry(1, 80, 0x8011), entry(2, 80, 0x8011), entry(2, 90, 0x10_8011)]);
        let second =
            container(&[entry(2, 100, 0x120_8011), entry(2, 120, 0x120_8011), entry(2, 100, 0x110_8011)]);
        let code = read(&[first, vec![0; 8], second].concat()).expect("well formed");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(code.machine_code, names(&["sm_80", "sm_90a", "sm_100f", "sm_120f", "sm_100a"]));
        assert_eq!(code.ptx, names(&["sm_80"]));
    }

    #[test]
    fn broken_containers_are_refused_and_never_read_beyond() {
        let whole = container(&[entry(2, 80, 0), entry(2, 90, 0)]);
        for cut in 0..whole.len() {
            let _ = read(&whole[..cut]); // must only not panic
        }
        assert!(read(&whole[..whole.len() - 1]).is_err());
        assert!(read(&container(&[entry(7, 80, 0)])).is_err(), "unknown kind");
        let mut long = whole.clone();
        long[16 + 8] = 0xFF;
        long[16 + 15] = 0xFF;
        assert!(read(&long).is_err(), "an entry that claims to be endless");
        assert_eq!(read(&[]).expect("nothing"), Code::default());
    }

    /// A container written by nvcc 13.0.88 with `--compress-mode=size`, for sm_80 and sm_90a and with PTX.
    #[test]
    fn what_the_compiler_wrote_is_read() {
        let bytes = include_bytes!("fixtures/twice.fatbin");
        let code = read(bytes).expect("well formed");
        assert_eq!(code.machine_code.into_iter().collect::<Vec<_>>(), ["sm_100f", "sm_80", "sm_90a"]);
        assert_eq!(code.ptx.into_iter().collect::<Vec<_>>(), ["sm_80"]);
    }
}
