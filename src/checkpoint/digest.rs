//! The digest of a checkpoint: a CRC-32C of its texts and tensors, which detects flipped bits.
//!
//! The digest covers content: texts and tensors in the order of their names, at any place in the file. It is
//! therefore known before the header is complete, can be taken while tensors are read in any order, and also
//! holds for a file with the same content from another program. It is stored as eight digits in the record;
//! the digest does not cover these digits.

use super::Dtype;
use super::metadata::KEY;
use crc32c::crc32c_append;
use std::collections::BTreeMap;
use std::ops::Range;

/// The digits before the digest is known.
pub(super) const ZEROS: &str = "00000000";

/// The place of the digits in the text of a record; `None` for a record in another form than the saved one.
fn place(record: &str) -> Option<Range<usize>> {
    let rest = record.strip_prefix("{\"version\":")?;
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(",\"crc32c\":\"")?;
    let start = record.len() - rest.len();
    (rest.as_bytes().get(ZEROS.len()) == Some(&b'"')).then_some(start..start + ZEROS.len())
}

/// The digits in the metadata of a checkpoint.
pub(super) fn digits(metadata: &BTreeMap<String, String>) -> Option<&str> {
    metadata.get(KEY).and_then(|record| record.get(place(record)?))
}

/// Writes the digits into the metadata of a checkpoint.
pub(super) fn stamp(metadata: &mut BTreeMap<String, String>, digest: u32) {
    if let Some(record) = metadata.get_mut(KEY)
        && let Some(place) = place(record)
    {
        record.replace_range(place, &text(digest));
    }
}

/// The digits of a digest.
pub(super) fn text(digest: u32) -> String {
    format!("{digest:08x}")
}

/// The digest of a checkpoint. Tensors come in the order of their names, each with the sum of its bytes.
pub(super) fn digest<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [u64], u32)>,
) -> u32 {
    let mut digest = 0;
    // Lengths are included, so that different contents have different bytes.
    let mut add = |bytes: &[u8]| {
        digest = crc32c_append(digest, &(bytes.len() as u64).to_le_bytes());
        digest = crc32c_append(digest, bytes);
    };
    for (key, text) in metadata {
        add(key.as_bytes());
        match place(text).filter(|_| key == KEY) {
            None => add(text.as_bytes()),
            Some(place) => {
                add(&text.as_bytes()[..place.start]);
                add(&text.as_bytes()[place.end..]);
            }
        }
    }
    for (name, dtype, shape, sum) in tensors {
        add(name.as_bytes());
        add(dtype.to_string().as_bytes());
        shape.iter().for_each(|dimension| add(&dimension.to_le_bytes()));
        add(&sum.to_le_bytes());
    }
    digest
}

/// The sum of a tensor's first bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    /// The number of these bytes.
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
}

impl Sum {
    /// Adds the part of `bytes` that follows the bytes added so far. `bytes` begins at the tensor's byte
    /// `start`. Bytes after a gap are left for later.
    pub(super) fn add(&mut self, start: u64, bytes: &[u8]) {
        let skip = self.bytes.checked_sub(start).and_then(|skip| usize::try_from(skip).ok());
        if let Some(new) = skip.and_then(|skip| bytes.get(skip..)) {
            self.crc32c = crc32c_append(self.crc32c, new);
            self.bytes += new.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor that is read in overlapping or early pieces has the sum of its bytes, as in the standard's
    /// example.
    #[test]
    fn the_sum_of_pieces_is_that_of_the_whole() {
        let bytes = b"123456789";
        let mut sum = Sum::default();
        for (start, end) in [(4, 6), (0, 3), (1, 2), (2, 5), (0, 9), (3, 9), (9, 9)] {
            sum.add(start as u64, &bytes[start..end]);
        }
        assert_eq!((sum.bytes, sum.crc32c), (9, 0xe306_9283));
    }

    #[test]
    fn digits_have_one_place() {
        let metadata = |record: &str| BTreeMap::from([(KEY.to_owned(), record.to_owned())]);
        let record = r#"{"version":12,"crc32c":"00000000","writer":"x"}"#;
        let mut stamped = metadata(record);
        stamp(&mut stamped, 0xab);
        assert_eq!(digits(&stamped), Some("000000ab"));
        assert_eq!(stamped[KEY], record.replace("00000000", "000000ab"));
        assert_eq!(digest(&stamped, std::iter::empty()), digest(&metadata(record), std::iter::empty()));
        for other in [
            "",
            "{}",
            r#"{"version":1,"crc32c":"0000000","writer":"x"}"#,
            r#"{"version":1,"crc32c":"000000000","writer":"x"}"#,
            r#"{"version":1,"crc32c":"éééé"#,
            r#"{"version":1,"writer":"x","crc32c":"00000000"}"#,
            r#"{"version": 1, "crc32c": "00000000"}"#,
        ] {
            assert_eq!(digits(&metadata(other)), None, "{other}");
        }
    }
}
