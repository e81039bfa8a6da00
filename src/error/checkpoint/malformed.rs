//! Defects of a file.

use crate::error::Count;
/// A defect of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The file is shorter than its header says.
    #[error("{len} bytes, cut short: must be {expected}", len = Count(*.len), expected = Count(*.expected))]
    Truncated {
        /// The length of the file in bytes.
        len: u64,
        /// The length according to the header.
        expected: u64,
    },
    /// The file is longer than its header says.
    #[error("{len} bytes, must be {expected}", len = Count(*.len), expected = Count(*.expected))]
    Trailing {
        /// The length of the file in bytes.
        len: u64,
        /// The length according to the header.
        expected: u64,
    },
    /// A header or index would take more memory than allowed.
    #[error(
        "{what} of {found} bytes, must be at most {bound}",
        found = Count(*.found), bound = Count(*.bound)
    )]
    TooLarge {
        /// The name of the part.
        what: &'static str,
        /// The size of the part.
        found: u64,
        /// The largest size.
        bound: u64,
    },
    /// The file has more parts of one kind than the limit.
    #[error("{found} {what}, must be at most {bound}", found = Count(*.found), bound = Count(*.bound))]
    TooMany {
        /// The kind of the parts.
        what: &'static str,
        /// The number of parts that were counted.
        found: u64,
        /// The largest number of parts.
        bound: u64,
    },
    /// A text is not valid JSON of the expected form.
    #[error("{what}: {reason}")]
    Json {
        /// The name of the text.
        what: &'static str,
        /// The message of the parser.
        reason: String,
    },
    /// Two tensors have one name.
    #[error("tensor {name:?} occurs twice: load another copy")]
    Duplicate {
        /// The name of both tensors.
        name: String,
    },
    /// The bytes of a tensor do not begin at the end of those before it.
    #[error(
        "tensor {name:?} begins at byte {found} of the data, must be {expected}",
        found = Count(*.found), expected = Count(*.expected)
    )]
    Offset {
        /// The name of the tensor.
        name: String,
        /// The first byte of the tensor.
        found: u64,
        /// One past the last byte before it.
        expected: u64,
    },
    /// The number of a tensor's bytes contradicts its shape and type.
    #[error("tensor {name:?} has {found} bytes, {}", size(*.expected), found = Count(*.found))]
    Size {
        /// The name of the tensor.
        name: String,
        /// The number of bytes in the file.
        found: u64,
        /// The number of bytes by shape and type; `None` if they cannot be counted.
        expected: Option<u64>,
    },
    /// A name in an index is not the name of a file in the same directory.
    #[error("shard {name:?}, must be the name of a file beside the index")]
    ShardName {
        /// The name.
        name: String,
    },
    /// A tensor is not in its shard of the index, or is in a shard and not in the index.
    #[error("index and shard {shard:?} do not agree on tensor {name:?}: load another copy")]
    Shard {
        /// The name of the tensor.
        name: String,
        /// The name of the shard.
        shard: String,
    },
    /// The content does not match the saved digest: a disk, a copy or a program has changed it.
    #[error(
        "CRC-32C {found} of the content, must be {expected}: it has changed since it was saved; load another \
         copy"
    )]
    Digest {
        /// The digits of the content.
        found: String,
        /// The digits that were saved.
        expected: String,
    },
    /// A value of the checkpoint's own metadata is out of range.
    #[error("{field} = {value}, must be {bound}")]
    Value {
        /// The name of the value.
        field: &'static str,
        /// The value that was refused.
        value: String,
        /// The range of the value.
        bound: &'static str,
    },
}

fn size(expected: Option<u64>) -> String {
    match expected {
        Some(expected) => format!("must be {expected}"),
        None => "its shape must have what can be counted".into(),
    }
}
