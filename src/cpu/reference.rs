//! The optimizer in f64, as a plain loop. Devices are checked against it.

use crate::error::{BindError, OptionsError, OutOfMemory, StateError, StepError};
use crate::layout::{Carry, Layout};
use crate::step::Step;

/// Applies the rules of a layout to its tensors in a flat slice, in f64: the reference. It has no options and
/// runs on one thread, element by element.
///
/// ```
/// use wgpu_optim::{Group, Layout, Sgd, cpu};
/// let layout = Layout::new([Group::new("all", Sgd::default()).tensor("w", [3])])?;
/// let mut optimizer = cpu::Reference::new(layout)?;
/// let mut params = [1.0, 2.0, 3.0];
/// optimizer.step(&mut params, &[10.0, 0.0, -10.0], 0.1)?;
/// assert_eq!(params, [0.0, 2.0, 4.0]);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reference {
    layout: Layout,
    names: Vec<&'static str>,
    /// One vector per slot of [`Layout::slot_names`], indexed as the flat space; empty if no rule keeps the
    /// slot.
    state: Vec<Vec<f64>>,
    carries: Vec<Carry>,
    steps: u64,
}

impl Reference {
    /// Allocates zeroed state for `layout`.
    ///
    /// # Errors
    /// An [`OptionsError`] if memory is lacking, or if a rule has no CPU implementation.
    pub fn new(layout: Layout) -> Result<Self, OptionsError> {
        for rule in layout.rules() {
            rule.spec.cpu()?;
        }
        let zeros = |name: &&'static str| {
            let mut zeros = Vec::new();
            if layout.keeps_slot(name) {
                let refuse = OutOfMemory { bytes: layout.len().saturating_mul(size_of::<f64>() as u64) };
                let len = usize::try_from(layout.len()).map_err(|_| refuse)?;
                zeros.try_reserve_exact(len).map_err(|_| refuse)?;
                zeros.resize(len, 0.0);
            }
            Ok(zeros)
        };
        let names = layout.slot_names();
        let state = names.iter().map(zeros).collect::<Result<_, OutOfMemory>>()?;
        Ok(Self { state, names, carries: vec![Carry::default(); layout.groups().len()], steps: 0, layout })
    }

    /// The layout of the tensors.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The number of steps taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// State slot `slot` (by its PyTorch name) of `tensor`; `None` if no group of the tensor's rule keeps it.
    ///
    /// # Errors
    /// A [`StateError`] if the tensor or the slot is unknown.
    pub fn state(&self, slot: &str, tensor: &str) -> Result<Option<&[f64]>, StateError> {
        let tensor = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let rule = self.layout.rule_of(tensor);
        let unknown = || StateError::UnknownSlot { tensor: tensor.name.clone(), slot: slot.into() };
        let nth = rule.spec.slot(slot).ok_or_else(unknown)?;
        let index = self.names.iter().position(|name| *name == slot).ok_or_else(unknown)?;
        Ok(if rule.kept[nth] { self.state[index].get(tensor.range()) } else { None })
    }

    /// The flat vectors of all slots, in the order of [`Layout::slot_names`]; empty for a slot that no rule
    /// keeps.
    #[must_use]
    pub fn slots(&self) -> &[Vec<f64>] {
        &self.state
    }

    /// Takes one step. `params` and `grads` are flat, with the tensors at the layout's offsets.
    ///
    /// # Errors
    /// A [`StepError`] if a slice is shorter than [`Layout::len`], if an argument is out of range, or for a
    /// gradient scale other than 1. Nothing changes then.
    pub fn step(
        &mut self,
        params: &mut [f64],
        grads: &[f64],
        step: impl Into<Step>,
    ) -> Result<(), StepError> {
        for (what, found) in [("parameters", params.len()), ("gradients", grads.len())] {
            let (found, bound) = (found as u64, self.layout.len());
            if found < bound {
                return Err(BindError::TooShort { what, found, bound }.into());
            }
        }
        let step = step.into();
        step.refuse_grad_scale()?;
        let mut carries = self.carries.clone();
        let mut of_groups: Vec<Vec<f64>> = Vec::with_capacity(carries.len());
        let mut scratch = vec![0.0; self.layout.most_scalars()];
        self.layout.scalars(step, self.steps, &mut carries, &mut scratch, |_, _, scalars| {
            of_groups.push(scalars.to_vec());
        })?;
        self.carries = carries;
        self.steps += 1;
        let thawed = |group: usize| !self.layout.groups()[group].is_frozen();
        for tensor in self.layout.by_offset().filter(|tensor| thawed(tensor.group)) {
            let rule = self.layout.rule_of(tensor);
            let exact = &rule.spec.cpu()?.exact;
            let mut s = of_groups[tensor.group].clone();
            let (params, grads) = (&mut params[tensor.range()], &grads[tensor.range()]);
            // The slots of the tensor's rule, in its order.
            let mut own: Vec<&mut [f64]> = Vec::new();
            own.resize_with(rule.spec.slots.len(), Default::default);
            for (name, values) in self.names.iter().zip(&mut self.state) {
                if let Some(nth) = rule.spec.slot(name).filter(|&nth| rule.kept[nth]) {
                    own[nth] = &mut values[tensor.range()];
                }
            }
            if rule.spec.is_layer_wise() {
                let state: Vec<&[f64]> = own.iter().map(|slot| &**slot).collect();
                exact.set_trust_ratio(&mut s, rule.spec.trust_ratio_field(), params, grads, &state);
            }
            (exact.update)(&s, params, grads, &mut own);
        }
        Ok(())
    }
}
