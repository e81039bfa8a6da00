//! A step: the upload of its scalars, and its dispatches in the caller's encoder.

use super::control::{Control, Request, Staging, device_count};
use super::device;
use super::optimizer::{Optimizer, request_bytes};
use super::record::{Bound, Recorded};
use super::ring::Lease;
use crate::error::{DeviceError, StepError};
use crate::float::Float;
use crate::narrow::to_u32;
use crate::options::{Clip, Rounding};
use crate::random::step_key;
use crate::step::Step;
use std::sync::Arc;

pub(super) const REQUEST_WORDS: usize = size_of::<Request>() / size_of::<u32>();

impl Optimizer {
    /// Records one step: a single compute pass with the binding's [dispatches](Bound::dispatches).
    ///
    /// `step` is a learning rate, or a [`Step`]. The call neither submits nor waits. It allocates nothing of
    /// its own after the first steps, up to the largest number of steps in flight (wgpu allocates while it
    /// records). [`steps`](Self::steps) counts the step.
    ///
    /// # Errors
    /// A [`StepError`] if an argument is out of range, if reports are due, if the device is lost, or if it
    /// has no memory for scalars or a report. The first step after a group was thawed may return the errors
    /// of [`bind`](Self::bind). Nothing is recorded then, and no state changes.
    pub fn step(
        &mut self,
        queue: &wgpu::Queue,
        encoder: &mut wgpu::CommandEncoder,
        tensors: &Bound,
        step: impl Into<Step>,
    ) -> Result<(), StepError> {
        // Before anything is recorded, since it may fail.
        let staging = self.staging()?;
        let (recorded, lease) = self.prepare(queue, tensors, step.into())?;
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            recorded.record(self, &mut pass, &lease);
        }
        encoder.on_submitted_work_done(move || drop(lease));
        if let (Some(control), Some(staging)) = (&self.control, staging) {
            control.read_back(&self.device, encoder, staging, self.steps - 1);
        }
        Ok(())
    }

    /// Records one step into a compute pass of the caller. Afterwards its own pipeline and bind groups 0 and
    /// 1 are set.
    ///
    /// # Errors
    /// The errors of [`step`](Self::step).
    pub fn step_in_pass(
        &mut self,
        queue: &wgpu::Queue,
        pass: &mut wgpu::ComputePass<'_>,
        tensors: &Bound,
        step: impl Into<Step>,
    ) -> Result<(), StepError> {
        let (recorded, lease) = self.prepare(queue, tensors, step.into())?;
        recorded.record(self, pass, &lease);
        pass.on_submitted_work_done(move || drop(lease));
        Ok(())
    }

    /// Records the transfer of the last step's report to the host.
    ///
    /// [`step`](Self::step) does this itself. After [`step_in_pass`](Self::step_in_pass) the caller must do
    /// it, before 1 024 more steps are recorded. It does nothing if the options ask for no reports.
    ///
    /// # Errors
    /// A [`DeviceError`] if the device is lost or has no memory for a report. Nothing is recorded then.
    pub fn read_back(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), DeviceError> {
        device::alive(&self.device)?;
        if let (Some(control), Some(staging), 1..) = (&self.control, self.staging()?, self.steps) {
            control.read_back(&self.device, encoder, staging, self.steps - 1);
        }
        Ok(())
    }

    /// A staging buffer for a report, if the options ask for reports.
    fn staging(&self) -> Result<Option<Staging>, DeviceError> {
        match &self.control {
            Some(control) if self.options.reports() => control.staging(&self.device).map(Some),
            _ => Ok(None),
        }
    }

    /// The parts of a step that may fail: its dispatches, and the upload of its scalars.
    fn prepare(
        &mut self,
        queue: &wgpu::Queue,
        tensors: &Bound,
        step: Step,
    ) -> Result<(Arc<Recorded>, Lease), StepError> {
        let recorded = self.write_scalars(tensors, step)?;
        if size_of_val(self.scratch.as_slice()) as u64 > self.ring.slot_bytes() {
            let candidate = self.candidate.vectors(self.layout.groups().len());
            let bytes = request_bytes(candidate, (2 * self.pending.count()).min(self.max_candidates));
            self.ring = self.ring.with_slot_bytes(bytes)?;
        }
        let lease = self.ring.write(queue, bytemuck::cast_slice(&self.scratch))?;
        self.count_step();
        Ok((recorded, lease))
    }

    /// Counts a step after the upload of its scalars.
    pub(super) fn count_step(&mut self) {
        self.pending.commit(self.options.skips());
        self.steps += 1;
    }

    /// Writes the bytes that the next step uploads to `scratch`.
    pub(super) fn write_scalars(&mut self, tensors: &Bound, step: Step) -> Result<Arc<Recorded>, StepError> {
        if !Arc::ptr_eq(&tensors.owner, &self.identity) {
            return Err(StepError::ForeignBinding);
        }
        let unscale = f32::from_f64(step.unscale()?);
        let recorded = self.current(tensors)?;
        if let Some((reported, skipped)) = self.control.as_ref().and_then(Control::newest) {
            self.pending.confirm(skipped, self.steps.saturating_sub(reported + 1));
        }
        let candidates = self.pending.count();
        if candidates > self.max_candidates {
            return Err(StepError::Unreported { steps: candidates - 1, bound: self.max_candidates - 1 });
        }
        self.write_candidates(step, unscale, candidates)?;
        let candidate = 4 * self.candidate.vectors(self.layout.groups().len());
        let first = if self.control.is_some() { REQUEST_WORDS } else { 0 };
        // If all candidates are equal, one suffices.
        let (one, others) = self.scratch[first..].split_at(candidate);
        let sent = if others.chunks_exact(candidate).all(|other| other == one) { 1 } else { candidates };
        self.scratch.truncate(first + sent * candidate);
        if let (Some(control), Some(partials)) = (&self.control, recorded.partials()) {
            let request = Request {
                number: device_count(self.steps),
                first: device_count(self.pending.first()),
                count: to_u32(sent),
                unscale,
                max_norm: Control::max_norm(&self.options),
                partials,
                ..control.request
            };
            self.scratch[..REQUEST_WORDS].copy_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(&request)));
        }
        Ok(recorded)
    }

    /// Writes the next step's scalar candidates to `scratch`, one per possible count of skipped steps.
    fn write_candidates(&mut self, step: Step, unscale: f32, candidates: usize) -> Result<(), StepError> {
        let candidate_words = 4 * self.candidate.vectors(self.layout.groups().len());
        let (header, stride) = (4 * self.candidate.header as usize, 4 * self.candidate.stride as usize);
        let weight = self.candidate.weight as usize;
        let first = if self.control.is_some() { REQUEST_WORDS } else { 0 };
        let Self { scratch, exact, layout, options, steps, .. } = self;
        scratch.clear();
        scratch.resize(first + candidates * candidate_words, 0);
        let uncertain = self.pending.prepare(|i, skipped, carries| {
            let t = *steps + 1 - skipped;
            let candidate = &mut scratch[first + i * candidate_words..][..candidate_words];
            let (step_header, groups) = candidate.split_at_mut(header);
            let bound = if let Some(Clip::Value(bound)) = options.clip { bound } else { 0.0 };
            // The control kernel, if there is one, replaces the first two values: the factor and the skip.
            step_header[..4].copy_from_slice(&[unscale, 0.0, 0.0, f32::from_f64(bound)].map(f32::to_bits));
            if let Some(key) = step_header.get_mut(4..) {
                let seed = if let Rounding::Stochastic { seed } = options.rounding { seed } else { 0 };
                key.iter_mut().zip(step_key(seed, t)).for_each(|(to, x)| *to = x.to_bits());
            }
            layout.scalars(step, *steps, carries, exact, |group, t, scalars| {
                let own = &mut groups[group * stride..][..stride];
                own.iter_mut().zip(scalars).for_each(|(to, &x)| *to = f32::from_f64(x).to_bits());
                if let Some(ema) = options.ema {
                    own[weight] = f32::from_f64(ema.weight(t)).to_bits();
                }
            })
        })?;
        let Some(uncertain) = uncertain else { return Ok(()) };
        let (group, steps) = (&self.layout.groups()[uncertain.group], candidates - 1);
        if uncertain.age {
            return Err(StepError::UncertainAge { group: group.name().into(), steps });
        }
        Err(StepError::UncertainMomentum { rule: group.rule().name(), steps })
    }
}
