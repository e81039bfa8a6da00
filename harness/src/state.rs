//! State on a GPU, in the flat space.

use crate::{Gpu, wgpu};
use cpu_harness::joined;
use wgpu_optim::check::Snapshot;
use wgpu_optim::{Format, Optimizer, Tensor, View};

/// The codes of elements of `bytes`, 4 or 2, in words.
fn codes(words: &[u32], bytes: u64) -> Vec<u32> {
    match bytes {
        4 => words.to_vec(),
        _ => words.iter().flat_map(|word| [word & 0xffff, word >> 16]).collect(),
    }
}

/// The tensors that keep a slot; `None` if no tensor has such a slot.
fn keeping<'a>(optimizer: &'a Optimizer, slot: &str) -> Option<Vec<&'a Tensor>> {
    let (mut keeping, mut known) = (Vec::new(), false);
    for tensor in optimizer.layout().tensors() {
        // A tensor with a rule that lacks the slot has no such state.
        let Ok(ranges) = optimizer.state(slot, &tensor.name) else { continue };
        known = true;
        keeping.extend((!ranges.is_empty()).then_some(tensor));
    }
    known.then_some(keeping)
}

/// The numbers of a slot in the flat space, decoded by the library. Empty if the slot is not kept; `None` if
/// there is no such slot.
pub(crate) fn numbers(gpu: &Gpu, optimizer: &Optimizer, slot: &str) -> Option<Vec<f32>> {
    let keeping = keeping(optimizer, slot)?;
    if keeping.is_empty() {
        return Some(Vec::new());
    }
    let bytes = |t: &&Tensor| optimizer.stored_state(slot, &t.name).expect("it is kept").bytes();
    let (copies, words) = gpu.read_copies(keeping.iter().map(bytes).sum(), |encoder, staging| {
        let mut at = 0;
        let copy = |tensor: &&Tensor| {
            let to = View::new(staging, at as u64);
            let stored = optimizer.copy_state(encoder, slot, &tensor.name, to).expect("it is kept");
            let start = at;
            at += stored.bytes() as usize;
            (start, stored)
        };
        keeping.iter().map(copy).collect::<Vec<_>>()
    });
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    let mut flat = vec![0.0; optimizer.layout().len() as usize];
    for (tensor, (start, stored)) in keeping.iter().zip(copies) {
        flat[tensor.range()].copy_from_slice(&stored.decode(&bytes[start..]).expect("all bytes"));
    }
    Some(flat)
}

/// The remainders in the flat space. They are not numbers, so the library does not decode them.
fn remainders(gpu: &Gpu, optimizer: &Optimizer) -> Option<Vec<u32>> {
    let mut flat = vec![0; optimizer.layout().len() as usize];
    for tensor in keeping(optimizer, "remainder")? {
        for range in optimizer.state("remainder", &tensor.name).expect("it is kept") {
            let (first, end) = (range.offset / 4, (range.offset + 2 * range.len).div_ceil(4));
            let halves = codes(&gpu.read_bits(range.buffer, first * 4, (end - first) as usize), 2);
            let own = &halves[range.offset as usize % 4 / 2..][..range.len as usize];
            flat[(tensor.offset + range.start) as usize..][..own.len()].copy_from_slice(own);
        }
    }
    Some(flat)
}

/// The stored values of a slot in the flat space, per element: codes of 2 bytes, otherwise the bits of the
/// numbers. Empty if the slot is not kept; `None` if there is no such slot.
///
/// # Panics
/// If the device is lost.
#[must_use]
pub fn slot(gpu: &Gpu, optimizer: &Optimizer, slot: &str) -> Option<Vec<u32>> {
    if slot == "remainder" {
        return remainders(gpu, optimizer);
    }
    let mut bits: Vec<u32> = numbers(gpu, optimizer, slot)?.into_iter().map(f32::to_bits).collect();
    for tensor in keeping(optimizer, slot)? {
        // A bf16 is the upper half of its number.
        if optimizer.stored_state(slot, &tensor.name).expect("it is kept").format() == Format::Bf16 {
            bits[tensor.range()].iter_mut().for_each(|bits| *bits >>= 16);
        }
    }
    Some(bits)
}

/// The codes of the caller's parameters, flat from byte `offset` of their buffer on, a multiple of 4.
///
/// # Panics
/// If the device is lost.
#[must_use]
pub fn param_codes(gpu: &Gpu, optimizer: &Optimizer, params: &wgpu::Buffer, offset: u64) -> Vec<u32> {
    let (len, bytes) = (optimizer.layout().len(), optimizer.options().params.bytes());
    let words = gpu.read_bits(params, offset, (len * bytes).div_ceil(4) as usize);
    let mut codes = codes(&words, bytes);
    codes.truncate(len as usize);
    codes
}

/// Reads parameters (flat, at byte `offset` of `params`) and state of an optimizer, decoded; parameters have
/// all kept digits.
///
/// # Panics
/// If the device is lost.
#[must_use]
pub fn snapshot(gpu: &Gpu, optimizer: &Optimizer, params: &wgpu::Buffer, offset: u64) -> Snapshot {
    let (layout, format) = (optimizer.layout(), optimizer.options().params);
    let names = layout.slot_names().into_iter();
    let state = names.map(|name| numbers(gpu, optimizer, name).expect("the rule's own names")).collect();
    let stored = param_codes(gpu, optimizer, params, offset);
    let mut params: Vec<f32> = stored.iter().map(|&code| format.decode(code)).collect();
    let (master, remainder) = (numbers(gpu, optimizer, "master"), remainders(gpu, optimizer));
    // Elements between tensors have no remainders.
    for i in layout.tensors().iter().flat_map(|tensor| tensor.range()) {
        if let Some(master) = &master {
            params[i] = master[i];
        } else if let Some(remainder) = &remainder {
            params[i] = joined(stored[i], remainder[i]);
        }
    }
    Snapshot { params, state }
}
