//! Bounds of the form, which hold for reading and writing.

/// The end of an index's name.
pub(super) const INDEX_END: &str = ".index.json";
/// The key of the tensors' bytes in an index.
pub(super) const TOTAL_SIZE: &str = "total_size";
/// Before a header, its length.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Bytes that the headers of all files, or an index, may have. Parsed they take up to three times the memory.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// The headers' name in an error.
pub(super) const HEADERS: &str = "headers";
/// Dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 32;
/// Keys of metadata.
pub(super) const MAX_KEYS: usize = 1_024;
/// Files of one checkpoint: each is open.
pub(super) const MAX_SHARDS: usize = 512;
