//! Bounds of the file format for reading and writing.

/// The end of an index file's name.
pub(super) const INDEX_END: &str = ".index.json";
/// The key in an index for the bytes of all tensors.
pub(super) const TOTAL_SIZE: &str = "total_size";
/// Bytes of the length in front of a header.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Largest size of the headers of all files together, and of an index. Parsed, they take up to three times
/// the memory.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// The headers' name in an error.
pub(super) const HEADERS: &str = "headers";
/// Largest number of dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 32;
/// Largest number of metadata keys.
pub(super) const MAX_KEYS: usize = 1_024;
/// Largest number of files of one checkpoint, since each file is open.
pub(super) const MAX_SHARDS: usize = 512;
