//! Stored values of one tensor as f32, and back.

use crate::formats::{Format, q8};

/// Decodes stored values. For a format in blocks, `scales` has the scales, and the first block has `lead`
/// places before the first value.
pub(crate) fn decode(format: Format, codes: &[u8], scales: &[u8], lead: usize) -> Vec<f32> {
    match format {
        Format::Q8 => {
            let (scales, _) = scales.as_chunks();
            let scale = |i: usize| u32::from_ne_bytes(scales[(lead + i) / q8::BLOCK]);
            codes.iter().enumerate().map(|(i, &code)| q8::decode(code, scale(i))).collect()
        }
        Format::F32 => codes.as_chunks().0.iter().map(|bits| f32::from_ne_bytes(*bits)).collect(),
        Format::F16 | Format::Bf16 => {
            let codes = codes.as_chunks().0.iter();
            codes.map(|bits| format.decode(u16::from_ne_bytes(*bits).into())).collect()
        }
    }
}

/// Encodes values with rounding to nearest. Returns codes, and scales for a format in blocks.
pub(crate) fn encode(format: Format, values: &[f32], lead: usize) -> (Vec<u8>, Vec<u8>) {
    match format {
        Format::Q8 => {
            let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
            let (first, rest) = values.split_at((q8::BLOCK - lead).min(values.len()));
            for block in [first].into_iter().chain(rest.chunks(q8::BLOCK)).filter(|block| !block.is_empty()) {
                let scale = q8::scale(block);
                codes.extend(block.iter().map(|&x| q8::encode(x, scale)));
                scales.extend_from_slice(&scale.to_ne_bytes());
            }
            (codes, scales)
        }
        Format::F32 => (values.iter().flat_map(|x| x.to_ne_bytes()).collect(), Vec::new()),
        Format::F16 | Format::Bf16 => {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "a code of 2 bytes is the lower half of a u32"
            )]
            let code = |x: &f32| (format.encode(*x) as u16).to_ne_bytes();
            (values.iter().flat_map(code).collect(), Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_their_way_to_bytes_and_back() {
        let values: Vec<f32> = (0..100).map(|i| (i as f32 - 30.0) * 0.125).collect();
        for format in Format::ALL {
            for lead in if format == Format::Q8 { 0..4 } else { 0..1 } {
                let (codes, scales) = encode(format, &values, lead);
                assert_eq!(codes.len() as u64, 100 * format.bytes());
                let decoded = decode(format, &codes, &scales, lead);
                assert_eq!(encode(format, &decoded, lead), (codes, scales), "{}", format.name());
                if format != Format::Q8 {
                    // Multiples of an eighth below 16 are exact in every format except the format in blocks.
                    assert_eq!(decoded, values, "{}", format.name());
                }
            }
        }
    }
}
