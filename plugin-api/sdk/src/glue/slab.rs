//! Values named by ids that are never reused for something else.

/// Values under ids. An id is a slot and the slot's generation, so that a stale id names nothing.
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    vacant: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), vacant: Vec::new() }
    }

    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 1, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot<T>> {
        let slot = self.slots.get_mut(id as u32 as usize)?;
        (slot.generation == (id >> 32) as u32).then_some(slot)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let slot = self.slots.get(id as u32 as usize)?;
        if slot.generation == (id >> 32) as u32 { slot.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.slot(id)?.value.as_mut()
    }

    /// Takes a value out while keeping its id; [`Slab::put_back`] returns it.
    pub(crate) fn take(&mut self, id: u64) -> Option<T> {
        self.slot(id)?.value.take()
    }

    pub(crate) fn put_back(&mut self, id: u64, value: T) {
        if let Some(slot) = self.slot(id) {
            slot.value = Some(value);
        }
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let slot = self.slot(id)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.vacant.push(id as u32);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_names_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.take(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.take(second), Some("b"));
        assert_eq!(slab.get(second), None, "taken, not there");
        slab.put_back(second, "b");
        assert_eq!(slab.iter().count(), 1);
    }
}
