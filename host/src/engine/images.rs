//! Encoded images, shared by content.
//!
//! The same picture in the next turn of a conversation, or in another one, is encoded once. Embeddings nobody
//! uses stay until their bytes are needed; the [`Ledger`](super::ledger::Ledger) that counts sequences counts
//! them too.

use std::collections::HashMap;
use std::rc::Rc;

use super::ledger::Charge;
use crate::device::thread::ImageKey;

/// Hash of a picture's size and pixels.
pub type ImageHash = [u8; 32];

/// A sequence's hold on an encoded image.
#[derive(Debug, Clone)]
pub struct ImageHold {
    /// Its name on the devices.
    pub key: ImageKey,
    holders: Rc<()>,
}

#[derive(Debug)]
struct Entry {
    hold: ImageHold,
    last_use: u64,
    _charge: Charge,
}

/// All encoded images of a model.
#[derive(Debug, Default)]
pub struct Images {
    entries: HashMap<ImageHash, Entry>,
    next_key: u64,
    clock: u64,
}

impl Images {
    /// The image, if it is encoded already.
    pub fn find(&mut self, hash: &ImageHash) -> Option<ImageHold> {
        self.clock += 1;
        let entry = self.entries.get_mut(hash)?;
        entry.last_use = self.clock;
        Some(entry.hold.clone())
    }

    /// A name for an image that is about to be encoded.
    pub fn fresh_key(&mut self) -> ImageKey {
        self.next_key += 1;
        ImageKey(self.next_key)
    }

    /// Takes in an image that was encoded under `key`.
    pub fn insert(&mut self, hash: ImageHash, key: ImageKey, charge: Charge) -> ImageHold {
        self.clock += 1;
        let hold = ImageHold { key, holders: Rc::new(()) };
        let entry = Entry { hold: hold.clone(), last_use: self.clock, _charge: charge };
        self.entries.insert(hash, entry);
        hold
    }

    /// Forgets the least recently used image nobody holds; its key is to be freed on the devices.
    pub fn evict_one(&mut self) -> Option<ImageKey> {
        let unused = self.entries.iter().filter(|(_, entry)| Rc::strong_count(&entry.hold.holders) == 1);
        let hash = *unused.min_by_key(|(_, entry)| entry.last_use)?.0;
        self.entries.remove(&hash).map(|entry| entry.hold.key)
    }

    /// Encoded images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ledger::Ledger;

    #[test]
    fn only_images_nobody_holds_are_forgotten_oldest_first() {
        let ledger = Ledger::new(100, 1, 1);
        let mut images = Images::default();
        let add = |images: &mut Images, content: u8| {
            let key = images.fresh_key();
            images.insert([content; 32], key, ledger.charge(10).unwrap())
        };
        let first = add(&mut images, 1);
        let second = add(&mut images, 2);
        drop(add(&mut images, 3));
        assert_eq!(ledger.used(), 30);
        assert_eq!(images.evict_one(), Some(ImageKey(3)));
        assert_eq!(images.evict_one(), None);
        drop((first, second));
        assert!(images.find(&[1; 32]).is_some());
        assert_eq!(images.evict_one(), Some(ImageKey(2)), "the first was used later");
        assert_eq!(ledger.used(), 10);
    }
}
