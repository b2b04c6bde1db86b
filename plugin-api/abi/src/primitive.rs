//! The handful of building blocks every other type of the ABI is made of.

use abi_stable::StableAbi;

/// A borrowed array: `len` elements at `ptr`, valid for the call it is passed to.
///
/// An empty slice may have any pointer, null included.
#[repr(C)]
#[derive(StableAbi)]
pub struct Slice<T> {
    /// First element.
    pub ptr: *const T,
    /// Number of elements.
    pub len: u64,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<T> {}

impl<T> Slice<T> {
    /// A slice of nothing.
    pub const EMPTY: Self = Self { ptr: std::ptr::null(), len: 0 };

    /// Borrows `items`; the result must not outlive them.
    pub const fn new(items: &[T]) -> Self {
        Self { ptr: items.as_ptr(), len: items.len() as u64 }
    }

    /// The elements.
    ///
    /// # Safety
    /// `ptr` and `len` must describe initialised memory that nobody writes to during `'a`.
    pub const unsafe fn as_slice<'a>(self) -> &'a [T] {
        if self.len == 0 || self.ptr.is_null() {
            return &[];
        }
        // SAFETY: the caller vouches for pointer, length and lifetime.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len as usize) }
    }
}

/// Memory the caller lends to be written: `len` elements at `ptr`, valid for the call it is passed to.
#[repr(C)]
#[derive(StableAbi)]
pub struct SliceMut<T> {
    /// First element.
    pub ptr: *mut T,
    /// Number of elements.
    pub len: u64,
}

impl<T> Clone for SliceMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SliceMut<T> {}

impl<T> SliceMut<T> {
    /// A loan of nothing.
    pub const EMPTY: Self = Self { ptr: std::ptr::null_mut(), len: 0 };

    /// Lends `items`; the result must not outlive them.
    pub const fn new(items: &mut [T]) -> Self {
        Self { ptr: items.as_mut_ptr(), len: items.len() as u64 }
    }

    /// The lent elements.
    ///
    /// # Safety
    /// `ptr` and `len` must describe initialised memory that nobody else touches during `'a`.
    pub const unsafe fn as_slice<'a>(self) -> &'a mut [T] {
        if self.len == 0 || self.ptr.is_null() {
            return &mut [];
        }
        // SAFETY: the caller vouches for pointer, length, lifetime and exclusivity.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len as usize) }
    }
}

/// Borrowed UTF-8 text. A reader that finds invalid UTF-8 treats it as a fault of the other side.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Str {
    /// First byte.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: u64,
}

impl Str {
    /// Text of no length.
    pub const EMPTY: Self = Self { ptr: std::ptr::null(), len: 0 };

    /// Borrows `text`; the result must not outlive it.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() as u64 }
    }

    /// The text, or the bytes that are not UTF-8.
    ///
    /// # Safety
    /// `ptr` and `len` must describe initialised memory that nobody writes to during `'a`.
    pub unsafe fn as_str<'a>(self) -> Result<&'a str, std::str::Utf8Error> {
        // SAFETY: the caller vouches for pointer, length and lifetime.
        std::str::from_utf8(unsafe { Slice { ptr: self.ptr, len: self.len }.as_slice() })
    }
}

/// Names an object that lives on the plugin's side: a model, a router, an evictor. Zero names nothing.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub u64);

impl Handle {
    /// Names nothing.
    pub const NONE: Self = Self(0);
}

/// How a call ended. An unknown non-zero code means [`Code::INTERNAL`].
///
/// An integer, not an enum: a value one side does not know must not be undefined behaviour on the other.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    /// Success.
    pub const OK: Self = Self(0);
    /// Stopped because the host asked for it.
    pub const CANCELLED: Self = Self(1);
    /// This row, or this request, is wrong; nothing else is affected.
    pub const INVALID_INPUT: Self = Self(3);
    /// No room now; [`Failure::need_bytes`] says how much is missing where that is known.
    pub const OUT_OF_MEMORY: Self = Self(8);
    /// This plugin cannot serve this.
    pub const UNSUPPORTED: Self = Self(12);
    /// A bug, or a panic stopped at the door.
    pub const INTERNAL: Self = Self(13);
    /// The device is gone; the worker must be replaced.
    pub const DEVICE_LOST: Self = Self(100);
}

/// Longest error text that crosses, in bytes.
pub const MESSAGE_BYTES: usize = 1024;

/// Where a callee writes why it failed. Lent by the caller, who may read it when the code is not
/// [`Code::OK`].
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Failure {
    /// Repeats the returned code.
    pub code: Code,
    /// Bytes of `message` in use.
    pub message_len: u32,
    /// For [`Code::OUT_OF_MEMORY`]: bytes that were missing; 0 when unknown.
    pub need_bytes: u64,
    /// UTF-8 text: one sentence that states the fact and, where there is one, the remedy.
    pub message: [u8; MESSAGE_BYTES],
}

impl Failure {
    /// Nothing failed.
    pub const NONE: Self =
        Self { code: Code::OK, message_len: 0, need_bytes: 0, message: [0; MESSAGE_BYTES] };

    /// Fills in code and text; the text is cut at a character boundary if it is too long.
    pub fn set(&mut self, code: Code, message: &str, need_bytes: u64) {
        let len = message.floor_char_boundary(MESSAGE_BYTES.min(message.len()));
        self.code = code;
        self.need_bytes = need_bytes;
        self.message_len = len as u32;
        self.message[..len].copy_from_slice(&message.as_bytes()[..len]);
    }

    /// The text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        let len = (self.message_len as usize).min(MESSAGE_BYTES);
        String::from_utf8_lossy(&self.message[..len]).into_owned()
    }
}
