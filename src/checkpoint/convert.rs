//! Conversion of a file's values to an optimizer's.

use super::reader::Reader;
use super::{Dtype, SCALE_END};
use crate::error::checkpoint::{Error, Malformed};
use crate::formats::Format;
use crate::formats::bf16::joined_bf16;
use crate::formats::q8;
use crate::narrow::to_usize;
use crate::state::{Content, blocks, lead};

/// Number of elements per conversion: whole blocks.
const PIECE: u64 = 1 << 16;

const BLOCK: u64 = q8::BLOCK as u64;

/// The source of one tensor's values in one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) from: From,
    /// Bytes of all values.
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// No source: the values are zero.
    Zero,
    /// No source: the values do not change.
    Kept,
    /// A tensor of the file, unchanged.
    Same(usize),
    /// The numbers of a tensor of the file in another format.
    Converted(Numbers, Target),
}

/// Tensors of a file that are numbers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Numbers {
    Plain {
        tensor: usize,
        format: Format,
    },
    /// Codes and scales.
    Blocks {
        codes: usize,
        scales: usize,
        lead: u64,
    },
    /// The upper halves and the remainders.
    Joined {
        params: usize,
        remainders: usize,
    },
    /// Master weights. A zero means not initialized: the stored parameter is used.
    Masters {
        masters: usize,
        params: usize,
        format: Format,
    },
}

/// The target of a conversion.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Plain(Format),
    /// The upper half of an f32 whose lower half is kept.
    Upper,
    Lower,
    Codes {
        lead: u64,
        len: u64,
    },
    Scales {
        lead: u64,
        len: u64,
    },
}

impl Target {
    /// The target for a tensor in a stream with this content; `split` if the stream has its remainders.
    pub(super) fn new(content: Content, offset: u64, len: u64, split: bool) -> Self {
        let lead = lead(offset);
        match content {
            Content::Numbers(_) if split => Self::Upper,
            Content::Numbers(format) => Self::Plain(format),
            Content::Remainders => Self::Lower,
            Content::Codes => Self::Codes { lead, len },
            Content::Scales => Self::Scales { lead, len },
        }
    }
}

/// The format of numbers of this type, if each number is stored by itself.
pub(super) fn format(dtype: Dtype) -> Option<Format> {
    Format::TENSORS.into_iter().find(|format| self::dtype(*format) == dtype)
}

/// The type of the values of a format.
pub(super) fn dtype(format: Format) -> Dtype {
    match format {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::Bf16 => Dtype::BF16,
        Format::Q8 => Dtype::U8,
    }
}

impl Source {
    /// Fills bytes from byte `start` of the values on; `false` if they do not change.
    pub(super) fn fill(self, reader: &mut Reader, start: u64, bytes: &mut [u8]) -> Result<bool, Error> {
        match self.from {
            From::Kept => return Ok(false),
            From::Zero => bytes.fill(0),
            From::Same(tensor) => reader.read(tensor, start, bytes)?,
            From::Converted(numbers, target) => target.fill(reader, numbers, start, bytes)?,
        }
        Ok(true)
    }
}

impl Target {
    fn fill(self, reader: &mut Reader, numbers: Numbers, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        // Elements per value, and bytes per value.
        let (block, size) = match self {
            Self::Plain(format) => (1, to_usize(format.bytes())),
            Self::Upper | Self::Lower => (1, 2),
            Self::Codes { .. } => (1, 1),
            Self::Scales { .. } => (BLOCK, 4),
        };
        let mut first = start / size as u64;
        for bytes in bytes.chunks_mut(to_usize(PIECE / block) * size) {
            let last = first + (bytes.len() / size) as u64;
            let values = bytes.chunks_exact_mut(size);
            match self {
                Self::Plain(format) => {
                    let numbers = numbers.read(reader, first, last)?;
                    values.zip(numbers).for_each(|(into, x)| put(into, format.encode(x)));
                }
                Self::Upper => {
                    let numbers = numbers.read(reader, first, last)?;
                    // Ties away from zero, as in a step.
                    values
                        .zip(numbers)
                        .for_each(|(into, x)| put(into, x.to_bits().wrapping_add(0x8000) >> 16));
                }
                Self::Lower => {
                    let numbers = numbers.read(reader, first, last)?;
                    values.zip(numbers).for_each(|(into, x)| put(into, x.to_bits()));
                }
                Self::Scales { lead, len } => {
                    let (begin, end) = (start_of(first, lead), start_of(last, lead).min(len));
                    let numbers = numbers.read(reader, begin, end)?;
                    values
                        .zip(in_blocks(&numbers, begin, lead))
                        .for_each(|(into, block)| put(into, q8::scale(block)));
                }
                Self::Codes { lead, len } => {
                    // The whole blocks that contain these elements.
                    let begin = start_of((lead + first) / BLOCK, lead);
                    let end = start_of((lead + last).div_ceil(BLOCK), lead).min(len);
                    let numbers = numbers.read(reader, begin, end)?;
                    let codes = in_blocks(&numbers, begin, lead).flat_map(|block| {
                        let scale = q8::scale(block);
                        block.iter().map(move |x| q8::encode(*x, scale))
                    });
                    values.zip(codes.skip(to_usize(first - begin))).for_each(|(into, code)| into[0] = code);
                }
            }
            first = last;
        }
        Ok(())
    }
}

/// The first element of a block.
fn start_of(block: u64, lead: u64) -> u64 {
    (block * BLOCK).saturating_sub(lead)
}

/// Numbers from element `begin` on, the start of a block, block by block.
fn in_blocks(numbers: &[f32], begin: u64, lead: u64) -> impl Iterator<Item = &[f32]> {
    // The part of the first block before the tensor is absent.
    let short = if begin == 0 { to_usize(BLOCK - lead) } else { q8::BLOCK };
    let (first, others) = numbers.split_at(short.min(numbers.len()));
    std::iter::once(first).filter(|first| !first.is_empty()).chain(others.chunks(q8::BLOCK))
}

impl Numbers {
    /// The numbers of a slot of a tensor at `offset` in the file's layout.
    pub(super) fn find(reader: &Reader, slot: &str, tensor: &str, offset: u64) -> Option<Self> {
        let index = |end: &str| reader.index(&[slot, end, "/", tensor].concat());
        let dtype = |i: usize| reader.tensors()[i].dtype();
        let stored = index("")?;
        if let Some(format) = format(dtype(stored)) {
            return Some(Self::Plain { tensor: stored, format });
        }
        let scales = index(SCALE_END)?;
        let blocks = blocks(offset, reader.tensors()[stored].len());
        let good = (dtype(stored), dtype(scales)) == (Dtype::U8, Dtype::F32)
            && reader.tensors()[scales].len() == blocks;
        good.then_some(Self::Blocks { codes: stored, scales, lead: lead(offset) })
    }

    /// The tensors from which the numbers are read.
    pub(super) fn tensors(self) -> [usize; 2] {
        match self {
            Self::Plain { tensor, .. } => [tensor; 2],
            Self::Blocks { codes, scales, .. } => [codes, scales],
            Self::Joined { params, remainders } => [params, remainders],
            Self::Masters { masters, params, .. } => [masters, params],
        }
    }

    /// Reads elements `first..last`.
    fn read(self, reader: &mut Reader, first: u64, last: u64) -> Result<Vec<f32>, Error> {
        // Checked before memory is allocated.
        let stored = &reader.tensors()[self.tensors()[0]];
        if first > last || last > stored.len() {
            let expected = last.max(first).checked_mul(stored.dtype().bitsize() as u64 / 8);
            let reason = Malformed::Size { name: stored.name().into(), found: stored.bytes(), expected };
            return Err(Error::Malformed { location: reader.location().clone(), reason });
        }
        let mut codes = |tensor, size: u64, first: u64, last: u64| {
            let mut bytes = vec![0; to_usize((last - first) * size)];
            reader.read(tensor, first * size, &mut bytes)?;
            Ok::<_, Error>(bytes)
        };
        Ok(match self {
            Self::Plain { tensor, format } => {
                let bytes = codes(tensor, format.bytes(), first, last)?;
                bytes.chunks_exact(to_usize(format.bytes())).map(|x| format.decode(get(x))).collect()
            }
            Self::Joined { params, remainders } => {
                let (upper, lower) = (codes(params, 2, first, last)?, codes(remainders, 2, first, last)?);
                let pairs = upper.chunks_exact(2).zip(lower.chunks_exact(2));
                let joined = pairs.map(|(upper, lower)| {
                    #[allow(clippy::cast_possible_truncation, reason = "both have 2 bytes")]
                    let [upper, lower] = [upper, lower].map(|half| get(half) as u16);
                    joined_bf16(upper, lower)
                });
                joined.collect()
            }
            Self::Masters { masters, params, format } => {
                let (masters, params) =
                    (codes(masters, 4, first, last)?, codes(params, format.bytes(), first, last)?);
                let pairs = masters.chunks_exact(4).zip(params.chunks_exact(to_usize(format.bytes())));
                let number = |(master, param)| match get(master) {
                    0 => format.decode(get(param)),
                    bits => f32::from_bits(bits),
                };
                pairs.map(number).collect()
            }
            Self::Blocks { codes: tensor, scales, lead } => {
                let bytes = codes(tensor, 1, first, last)?;
                let block = (lead + first) / BLOCK;
                let scales = codes(scales, 4, block, (lead + last).div_ceil(BLOCK))?;
                let scale = |i: usize| {
                    let block = (lead + first + i as u64) / BLOCK - block;
                    get(&scales[to_usize(block) * 4..][..4])
                };
                bytes.iter().enumerate().map(|(i, &code)| q8::decode(code, scale(i))).collect()
            }
        })
    }
}

/// A little-endian number of up to 4 bytes.
fn get(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |code, &byte| code << 8 | u32::from(byte))
}

/// Stores the lower bytes of a number, up to the length of `into`.
fn put(into: &mut [u8], code: u32) {
    into.copy_from_slice(&code.to_le_bytes()[..into.len()]);
}

impl Reader<'_> {
    /// Decodes elements `first..last` of a slot of a tensor at `offset` of the flat space
    /// ([`Places`](super::Places)).
    ///
    /// The values are those of `SLOT/TENSOR`, with `SLOT.scale/TENSOR` for a slot in blocks. `None` if there
    /// is no such tensor, or if it has no numbers, as for remainders.
    ///
    /// # Errors
    /// As [`read`](Self::read), also if `first` is beyond `last`.
    pub fn numbers(
        &mut self,
        slot: &str,
        tensor: &str,
        offset: u64,
        first: u64,
        last: u64,
    ) -> Result<Option<Vec<f32>>, Error> {
        match Numbers::find(self, slot, tensor, offset) {
            Some(numbers) => numbers.read(self, first, last).map(Some),
            None => Ok(None),
        }
    }

    /// Decodes elements `first..last` of the tensor named `name`, as in files of parameters.
    ///
    /// # Errors
    /// As [`read`](Self::read), also if `first` is beyond `last`.
    pub fn plain_numbers(&mut self, name: &str, first: u64, last: u64) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.index(name) else { return Ok(None) };
        match format(self.tensors()[tensor].dtype()) {
            Some(format) => Numbers::Plain { tensor, format }.read(self, first, last).map(Some),
            None => Ok(None),
        }
    }
}
