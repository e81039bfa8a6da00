//! Bytes that a step moves.

#[cfg(test)]
mod tests;

use crate::formats::Format;
use crate::options::Options;
use crate::rules::RuleSpec;

/// Bytes that a step of a rule moves for a tensor of `len` elements.
///
/// Every written value is read too, except gradients that are set to zero. The first phase of a layer-wise
/// rule reads parameters, gradients and the kept slots of its update direction.
#[must_use]
pub(crate) fn bytes_moved(spec: &RuleSpec, kept: &[bool], options: &Options, len: u64) -> u128 {
    let kept = || spec.slots.iter().zip(kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let bytes = |format: Format| u128::from(format.tensor_bytes(len));
    let [params, grads, states] = [options.params, options.grads, options.states_of(len)].map(bytes);
    let params = params + options.storage().master().map_or(0, |(_, format)| bytes(format));
    let ema = options.ema.map_or(0, |_| bytes(Format::F32));
    let mut read = params + grads + states * kept().count() as u128 + ema;
    let written = read - grads + if options.zero_gradients { grads } else { 0 };
    if options.looks_first() {
        read += grads;
    }
    if spec.is_layer_wise() {
        let slots = kept().filter(|slot| spec.direction_slots.contains(slot));
        read += params + grads + states * slots.count() as u128;
    }
    read + written
}
