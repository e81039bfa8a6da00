//! Dispatches that are ready to be recorded.

use super::buffers::Part;
use super::kernel::Stage;
use super::optimizer::Optimizer;
use super::pipeline::Kernel;
use super::ring::Lease;
use std::slice;
use std::sync::{Arc, Mutex};

/// Tensors in the caller's buffers, checked and ready to record: the result of [`Optimizer::bind`].
///
/// A binding keeps the caller's buffers alive. Bind again when parameters or gradients move to other buffers.
#[derive(Debug)]
pub struct Bound {
    pub(super) owner: Arc<()>,
    /// The tensors in the caller's buffers, by chunks of state.
    pub(super) parts: Vec<Part>,
    /// All tensors by chunks of gradients, if a scan precedes the update.
    pub(super) scanned: Vec<Part>,
    /// The dispatches for the groups that were frozen at the last step.
    pub(super) recorded: Mutex<Arc<Recorded>>,
}

/// The dispatches of a step.
#[derive(Debug)]
pub(super) struct Recorded {
    /// The optimizer's count of changes of frozen groups at the time of planning.
    pub(super) revision: u64,
    /// The gradient scan, if the options ask for it.
    pub(super) scan: Option<Scan>,
    /// The dispatches of each rule.
    pub(super) rules: Vec<OfRule>,
    /// The kernel that adds up the norms of parameters and update.
    pub(super) norms: Option<BoundDispatch>,
    pub(super) slow: usize,
    pub(super) device_bytes: u64,
    /// The contents of the binding's own buffers, for a description.
    pub(super) contents: Vec<(wgpu::Buffer, Vec<u8>)>,
}

/// The gradient scan, and the control kernel after it.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) reductions: Vec<BoundDispatch>,
    /// The kernel that adds up partial sums by group, if groups are clipped.
    pub(super) by_group: Option<BoundDispatch>,
    pub(super) control: BoundDispatch,
    /// Partial sums that reach the control kernel.
    pub(super) partials: u32,
}

/// The dispatches of a rule.
#[derive(Debug, Default)]
pub(super) struct OfRule {
    /// The first phase of a layer-wise rule.
    pub(super) layer_norms: Vec<BoundDispatch>,
    /// The kernel that computes trust ratios from its results.
    pub(super) ratio: Option<BoundDispatch>,
    pub(super) updates: Vec<BoundDispatch>,
}

#[derive(Debug)]
pub(super) struct BoundDispatch {
    pub(super) kernel: Kernel,
    /// Bind group 0.
    pub(super) group: wgpu::BindGroup,
    pub(super) entries: Vec<Entry>,
    pub(super) workgroups: [u32; 2],
}

/// A binding of bind group 0.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) binding: u32,
    pub(super) buffer: wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Bind group 1 of a dispatch: the step's scalars, or a request with them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalars {
    /// No scalars.
    None,
    /// The scalars from the host.
    Sent,
    /// The scalars from the control kernel.
    Live,
    /// The scalars per tensor of a layer-wise rule.
    Tensors,
}

impl Bound {
    pub(super) fn recorded(&self) -> Arc<Recorded> {
        // A panic elsewhere leaves the value complete: it only sees assignments.
        self.recorded.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The number of dispatches per step, for the groups that were frozen at the last step or, before any
    /// step, at the binding.
    ///
    /// It is one per rule for flat buffers that fit a binding and have the size of
    /// [`Layout::buffer_size`](crate::Layout::buffer_size).
    ///
    /// Options that scan the gradients add one dispatch for the scan and one for the decision; a clip by
    /// group adds one more. A layer-wise rule adds two, norms of parameters and update add one. State in 8
    /// bits and stochastic rounding take one dispatch per set of tensors that share no vector of four. State
    /// that is partly in f32 takes one per format.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        let recorded = self.recorded();
        let scan = recorded.scan.as_ref();
        let of_rule =
            |rule: &OfRule| rule.layer_norms.len() + rule.updates.len() + usize::from(rule.ratio.is_some());
        recorded.rules.iter().map(of_rule).sum::<usize>()
            + scan.map_or(0, |scan| scan.reductions.len() + 1 + usize::from(scan.by_group.is_some()))
            + usize::from(recorded.norms.is_some())
    }

    /// The number of the update's dispatches that access parameters and gradients element by element, which
    /// is slower.
    ///
    /// The reason is a tensor that does not start at a vector of its buffer. The last one to three elements
    /// of a buffer that ends inside a vector do not count.
    #[must_use]
    pub fn slow_dispatches(&self) -> usize {
        self.recorded().slow
    }

    /// Bytes of device memory that the binding itself takes.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.recorded().device_bytes
    }
}

impl Recorded {
    /// Partial sums that reach the control kernel.
    pub(super) fn partials(&self) -> Option<u32> {
        self.scan.as_ref().map(|scan| scan.partials)
    }

    /// The dispatches in the order in which they are recorded, with the place of their rule in the layout.
    pub(super) fn in_order<'a>(
        &'a self,
        optimizer: &'a Optimizer,
        mut visit: impl FnMut(Stage, usize, &'a [BoundDispatch], Scalars),
    ) {
        let mut scalars = Scalars::Sent;
        if let Some(scan) = &self.scan {
            visit(Stage::Reduce, 0, &scan.reductions, Scalars::None);
            visit(Stage::FoldGroups, 0, scan.by_group.as_slice(), Scalars::None);
            visit(Stage::Control, 0, slice::from_ref(&scan.control), Scalars::Sent);
            scalars = Scalars::Live;
        }
        for (nth, rule) in self.rules.iter().enumerate() {
            visit(Stage::LayerNorms, nth, &rule.layer_norms, scalars);
            visit(Stage::TrustRatio, nth, rule.ratio.as_slice(), scalars);
        }
        for (nth, (rule, layers)) in self.rules.iter().zip(&optimizer.layers).enumerate() {
            let scalars = if layers.is_some() { Scalars::Tensors } else { scalars };
            visit(Stage::Update, nth, &rule.updates, scalars);
        }
        visit(Stage::FoldNorms, 0, self.norms.as_slice(), Scalars::None);
    }

    /// Records all dispatches, with the scalars that `lease` holds.
    pub(super) fn record(&self, optimizer: &Optimizer, pass: &mut wgpu::ComputePass<'_>, lease: &Lease) {
        self.in_order(optimizer, |_, rule, dispatches, scalars| {
            let scalars = match scalars {
                Scalars::None => None,
                Scalars::Sent => Some(optimizer.ring.group(lease)),
                Scalars::Live => optimizer.control.as_ref().map(|control| (&control.live_group, 0)),
                Scalars::Tensors => optimizer.layers[rule].as_ref().map(|layers| (&layers.group, 0)),
            };
            dispatch(pass, dispatches, scalars);
        });
    }
}

/// Records `dispatches`. Their pipelines have the scalars in bind group 1, if any.
fn dispatch(
    pass: &mut wgpu::ComputePass<'_>,
    dispatches: &[BoundDispatch],
    scalars: Option<(&wgpu::BindGroup, u32)>,
) {
    let mut current: Option<&wgpu::ComputePipeline> = None;
    for dispatch in dispatches {
        let pipeline = &dispatch.kernel.pipeline;
        if current != Some(pipeline) {
            pass.set_pipeline(pipeline);
            if let Some((scalars, offset)) = scalars {
                pass.set_bind_group(1, scalars, &[offset]);
            }
            current = Some(pipeline);
        }
        pass.set_bind_group(0, &dispatch.group, &[]);
        let [x, y] = dispatch.workgroups;
        pass.dispatch_workgroups(x, y, 1);
    }
}
