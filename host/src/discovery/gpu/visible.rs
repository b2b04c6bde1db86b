//! `CUDA_VISIBLE_DEVICES`: which GPUs this process was left.
//!
//! Read as CUDA reads it: a list of numbers, UUIDs or beginnings of UUIDs; the first entry that stands for
//! nothing ends the list, so `-1` in front leaves none. Numbers are those of `nvidia-smi`, which is CUDA's own
//! order under `CUDA_DEVICE_ORDER=PCI_BUS_ID`, and that is how neuron starts its workers.

use super::Gpu;

/// Marks the GPUs the variable hides. Answers with what is odd about it, one sentence each.
pub(super) fn hide(gpus: &mut [Gpu], value: Option<&str>) -> Vec<String> {
    let Some(value) = value else { return Vec::new() };
    let mut notes = Vec::new();
    let mut left = Vec::new();
    for entry in value.split(',').map(str::trim) {
        if value.trim().is_empty() || entry == "-1" {
            break;
        }
        match stands_for(gpus, entry) {
            Ok(place) if left.contains(&place) => {
                notes.push(format!("CUDA_VISIBLE_DEVICES names {} twice: {entry}", gpus[place].id()));
            }
            Ok(place) => left.push(place),
            Err(why) => {
                notes.push(format!("CUDA_VISIBLE_DEVICES ends at {entry:?}, {why}; what follows is ignored"));
                break;
            }
        }
    }
    for (place, gpu) in gpus.iter_mut().enumerate() {
        if !left.contains(&place) && gpu.fault.is_none() {
            gpu.fault = Some(format!("CUDA_VISIBLE_DEVICES={value:?} hides it"));
            gpu.hidden = true;
        }
    }
    notes
}

fn stands_for(gpus: &[Gpu], entry: &str) -> Result<usize, String> {
    if entry.starts_with("MIG-") {
        return Err("a MIG instance, which neuron does not use".into());
    }
    if let Ok(number) = entry.parse::<u32>() {
        return gpus
            .iter()
            .position(|gpu| gpu.number == number)
            .ok_or_else(|| format!("there are {} GPUs, counted from 0", gpus.len()));
    }
    if !entry.starts_with("GPU-") {
        return Err("which is neither a number nor a UUID".into());
    }
    let mut places = gpus.iter().enumerate().filter(|(_, gpu)| gpu.uuid.starts_with(entry));
    match (places.next(), places.next()) {
        (Some((place, _)), None) => Ok(place),
        (Some(_), Some(_)) => Err("which several GPUs' UUIDs begin with".into()),
        (None, _) => Err("which no GPU's UUID begins with".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::mixed_box;
    use super::*;

    fn left(value: Option<&str>) -> (Vec<u32>, Vec<String>) {
        let mut gpus = mixed_box();
        let notes = hide(&mut gpus, value);
        (gpus.iter().filter(|gpu| gpu.fault.is_none()).map(|gpu| gpu.number).collect(), notes)
    }

    #[test]
    fn it_is_read_as_cuda_reads_it() {
        let cases: [(Option<&str>, &[u32], Option<&str>); 14] = [
            (None, &[0, 1, 2, 3, 4], None),
            (Some(""), &[], None),
            (Some(" "), &[], None),
            (Some("-1"), &[], None),
            (Some("1,-1,2"), &[1], None),
            (Some("2,0"), &[0, 2], None),
            (Some(" 1 , 3 "), &[1, 3], None),
            (Some("1,7,2"), &[1], Some("there are 5 GPUs")),
            (Some("1,1,2"), &[1, 2], Some("cuda-1 twice")),
            (Some("GPU-40900000-0000-0000-0000-000000000002"), &[2], None),
            (Some("GPU-409,GPU-5"), &[2, 3], None),
            (Some("GPU-20"), &[], Some("several GPUs")),
            (Some("0,MIG-3c0ffee0-0000,1"), &[0], Some("a MIG instance")),
            (Some("one,1"), &[], Some("neither a number nor a UUID")),
        ];
        for (value, expected, note) in cases {
            let (numbers, notes) = left(value);
            assert_eq!(numbers, expected, "{value:?}");
            assert_eq!(notes.is_empty(), note.is_none(), "{value:?}: {notes:?}");
            assert!(note.is_none_or(|note| notes[0].contains(note)), "{value:?}: {notes:?}");
        }
        assert!(left(Some("GPU-nope")).1[0].contains("no GPU's UUID"));
    }

    #[test]
    fn a_fault_of_its_own_says_more_than_being_hidden() {
        let mut gpus = mixed_box();
        gpus[1].fault = Some("it has fallen off the bus".into());
        hide(&mut gpus, Some("0"));
        assert_eq!(gpus[1].fault.as_deref(), Some("it has fallen off the bus"));
        assert_eq!(gpus[2].fault.as_deref(), Some("CUDA_VISIBLE_DEVICES=\"0\" hides it"));
    }
}
