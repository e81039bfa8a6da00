//! The optimizer in f64, as plain as it can be: what the devices are checked against.

use crate::error::Error;
use crate::layout::Layout;
use crate::rules::{Fields, Step, Twin, slots, with_ratio};

/// Applies rule `R` to the tensors of a layout in a flat slice, in f64: the reference. Nothing stands around the update, and one thread goes from element to element.
///
/// ```
/// use wgpu_optim::{Group, Layout, Sgd, cpu};
/// let layout = Layout::new([Group::new("all", Sgd::default()).tensor("w", [3])])?;
/// let mut optimizer = cpu::Reference::<Sgd>::new(layout)?;
/// let mut params = [1.0, 2.0, 3.0];
/// optimizer.step(&mut params, &[10.0, 0.0, -10.0], 0.1)?;
/// assert_eq!(params, [0.0, 2.0, 4.0]);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reference<R> {
    layout: Layout<R>,
    /// One vector a slot, indexed as the flat space; empty where the slot is not kept.
    state: Vec<Vec<f64>>,
    carries: Vec<f64>,
    steps: u64,
}

impl<R: Twin> Reference<R> {
    /// Zeroed state for `layout`.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough memory for it.
    pub fn new(layout: Layout<R>) -> Result<Self, Error> {
        let zeros = |slot| {
            let mut zeros = Vec::new();
            if layout.keeps_slot(slot) {
                let refuse = Error::Memory { bytes: layout.len().saturating_mul(size_of::<f64>() as u64) };
                let len = usize::try_from(layout.len()).map_err(|_| refuse.clone())?;
                zeros.try_reserve_exact(len).map_err(|_| refuse)?;
                zeros.resize(len, 0.0);
            }
            Ok(zeros)
        };
        let state = (0..slots::<R>().len()).map(zeros).collect::<Result<_, Error>>()?;
        Ok(Self { state, carries: vec![0.0; layout.groups().len()], steps: 0, layout })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Layout<R> {
        &self.layout
    }

    /// Steps taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Slot `slot` (by its PyTorch name) of `tensor`; `None` if no group's configuration keeps it.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn state(&self, slot: &str, tensor: &str) -> Result<Option<&[f64]>, Error> {
        let index = slots::<R>()
            .iter()
            .position(|name| *name == slot)
            .ok_or_else(|| Error::Unknown { what: "slot", name: slot.into() })?;
        let tensor = self.layout.tensor(tensor)?;
        Ok(self.state[index].get(tensor.range()))
    }

    /// The flat vectors of all slots, in order; empty where a slot is not kept.
    #[must_use]
    pub fn slots(&self) -> &[Vec<f64>] {
        &self.state
    }

    /// Takes one step: `params` and `grads` are flat, as the layout places the tensors.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a slice is shorter than [`Layout::len`], [`Error::Step`], [`Error::Options`] for a divisor other than 1,
    /// [`Error::ScalarOverflow`]; nothing changes then.
    pub fn step(&mut self, params: &mut [f64], grads: &[f64], step: impl Into<Step>) -> Result<(), Error> {
        for (what, found) in [("parameters", params.len()), ("gradients", grads.len())] {
            let expected = self.layout.len();
            if (found as u64) < expected {
                return Err(Error::Mismatch { what, found: found as u64, expected });
            }
        }
        let step = step.into();
        step.unscale(false)?;
        let mut carries = self.carries.clone();
        let mut rows = Vec::with_capacity(carries.len());
        self.layout.scalars(step, self.steps, self.steps + 1, &mut carries, |_, scalars| {
            rows.push(scalars);
        })?;
        self.carries = carries;
        self.steps += 1;
        for tensor in self.layout.tensors() {
            let s = &rows[tensor.group];
            let state = |i| R::State::<f64>::from_fn(|slot| self.state[slot].get(i).copied().unwrap_or(0.0));
            let direction = |i| (params[i], R::direction(s, params[i], grads[i], &state(i)));
            let s = &with_ratio::<R, f64>(s, tensor.range().map(direction));
            for i in tensor.range() {
                let mut state =
                    R::State::<f64>::from_fn(|slot| self.state[slot].get(i).copied().unwrap_or(0.0));
                R::update(s, &mut params[i], grads[i], &mut state);
                for (slot, values) in self.state.iter_mut().enumerate() {
                    if let Some(value) = values.get_mut(i) {
                        *value = state.get(slot);
                    }
                }
            }
        }
        Ok(())
    }
}
