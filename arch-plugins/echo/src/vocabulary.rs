//! Token ids: one per byte, then the markers of a conversation.

/// Begins every prompt.
pub const BEGIN: u32 = 256;
/// Ends a turn, and the answer.
pub const END: u32 = 257;
/// Begins what the system says.
pub const SYSTEM: u32 = 258;
/// Begins what the user says.
pub const USER: u32 = 259;
/// Begins the answer.
pub const ASSISTANT: u32 = 260;
/// Begins what a tool returned.
pub const TOOL: u32 = 261;
/// Stands for a part of an image.
pub const IMAGE: u32 = 262;
/// Size of a row of logits. One more than there are tokens, as real models are padded too.
pub const VOCABULARY: usize = 264;
