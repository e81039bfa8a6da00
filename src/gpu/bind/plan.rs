//! The plan of dispatches for parts of the caller's buffers: tables of segments, and their kernels.

use super::tables::Table;
use crate::error::{BindError, DeviceError};
use crate::gpu::buffers::{ByteRange, Part, Window as Bytes};
use crate::gpu::device::alive;
use crate::gpu::kernel::{Access, Fused, KernelKey, TableLayout};
use crate::gpu::optimizer::Optimizer;
use crate::gpu::pipeline::Kernel;
use crate::gpu::plan::{self, Constraints, Dispatch, Header, Seams, TensorRange};
use crate::gpu::record::Recorded;
use crate::gpu::state::block_vectors;
use crate::layout::RuleUse;
use crate::narrow::to_u32;
use crate::options::Storage;

/// A planned dispatch.
pub(super) struct Planned {
    pub(super) table: Table,
    pub(super) kernel: Kernel,
    /// Bindings of state that the kernel has.
    pub(super) states: u32,
    pub(super) p: ByteRange,
    pub(super) g: ByteRange,
}

/// All dispatches for the tensors of one part of the state.
pub(super) struct PlannedStep {
    pub(super) rule: usize,
    pub(super) chunk: usize,
    pub(super) update: Planned,
    /// The first phase of a layer-wise rule.
    pub(super) layer_norms: Option<Planned>,
}

/// The bytes of the caller's buffers that a dispatch binds.
struct Window<'a> {
    part: &'a Part,
    access: Access,
    p: Bytes,
    g: Bytes,
}

impl Optimizer {
    /// Plans and builds all dispatches for tensors of groups that are not frozen. With `describes` it keeps
    /// the contents of new buffers.
    pub(in crate::gpu) fn plan(
        &mut self,
        parts: &[Part],
        scanned: &[Part],
        describes: bool,
    ) -> Result<Recorded, BindError> {
        alive(&self.device)?;
        let group_of: Vec<_> = self.layout.by_offset().map(|tensor| tensor.group).collect();
        let frozen: Vec<_> = self.layout.groups().iter().map(|group| group.is_frozen()).collect();
        let thawed = |part: &Part| {
            let tensor_ranges =
                part.tensor_ranges.iter().filter(|tensor_range| !frozen[group_of[tensor_range.tensor]]);
            let tensor_ranges: Vec<_> = tensor_ranges.copied().collect();
            (!tensor_ranges.is_empty()).then(|| Part { tensor_ranges, ..part.clone() })
        };
        let (mut steps, mut scans, mut slow) = (Vec::new(), Vec::new(), 0);
        for part in parts.iter().filter_map(thawed) {
            // The tail of an aligned part is not a slow path: it has at most three elements.
            slow += usize::from(!part.is_aligned());
            for (part, access) in part.split(block_vectors(self.state[part.chunk].format)) {
                steps.push(self.plan_step(&part, access)?);
            }
        }
        for part in scanned.iter().filter_map(thawed) {
            for (part, access) in part.split(1) {
                scans.push(self.plan_scan(&part, access)?);
            }
        }
        Ok(self.build(steps, scans, slow, describes)?)
    }

    fn plan_step(&mut self, part: &Part, access: Access) -> Result<PlannedStep, BindError> {
        let window = Window::new(part, access);
        let shares_buffer = window.refuse_shared_blocks()?;
        let state = &self.state[part.chunk];
        let (rule, states) = (state.rule, state.format);
        let RuleUse { spec, kept } = self.layout.rules()[rule].clone();
        // With a layer-wise rule every tensor has its own scalars.
        let numbered: Vec<TensorRange>;
        let mut tensor_ranges = &part.tensor_ranges;
        if self.layers[rule].is_some() {
            let number = |tensor_range: &TensorRange| TensorRange {
                group: self.numbers[tensor_range.tensor],
                ..*tensor_range
            };
            numbered = part.tensor_ranges.iter().map(number).collect();
            tensor_ranges = &numbered;
        }
        let storage = Storage { states, ..self.options.storage() };
        let (by_element, by_tensor) = (access == Access::Elements, storage.stochastic);
        let constraints = Constraints { by_element, block: block_vectors(states), by_tensor };
        let dispatch = if self.options.norms {
            plan::reduction(tensor_ranges, part.base, constraints, Seams::Shared, &self.limits)
        } else {
            plan::dispatch(tensor_ranges, part.base, constraints, &self.limits)
        };
        let table = self.table(&window, dispatch, by_tensor)?;
        let key = KernelKey {
            table_layout: table.table_layout,
            single: table.dispatch.segments.len() == 1 && !self.options.norms,
            writable_gradients: shares_buffer || self.options.zero_gradients,
            groups: to_u32(self.layout.groups().len()),
            scalars_space: self.limits.scalars_space,
            candidate: self.candidate,
            kept,
            storage,
            fused: Fused::of(&self.options),
        };
        let layer_norms = match &self.layers[rule] {
            None => None,
            Some(_) => {
                let constraints = Constraints::plain(by_element);
                let reduction =
                    plan::reduction(tensor_ranges, part.base, constraints, Seams::Apart, &self.limits);
                let table = self.table(&window, reduction, false)?;
                let key = KernelKey { table_layout: table.table_layout, ..key.for_layer_norms() };
                Some((table, key))
            }
        };
        let (key, scalars) = match &self.layers[rule] {
            None => (key, &self.scalars_layout),
            Some(layers) => {
                let groups = to_u32(layers.group_of.len());
                (KernelKey { groups, scalars_space: layers.space, ..key }, &layers.layout)
            }
        };
        let cached = (rule, key);
        if !self.kernels.contains_key(&cached) {
            let kernel = Kernel::step(&spec, &self.device, scalars, &cached.1)?;
            self.kernels.insert(cached.clone(), kernel);
        }
        let update = window.planned(table, &self.kernels[&cached], cached.1.states());
        let layer_norms = match layer_norms {
            None => None,
            Some((table, key)) => {
                let cached = (rule, key);
                if !self.layer_norms.contains_key(&cached) {
                    let kernel = Kernel::layer_norms(&spec, &self.device, &self.scalars_layout, &cached.1)?;
                    self.layer_norms.insert(cached.clone(), kernel);
                }
                Some(window.planned(table, &self.layer_norms[&cached], cached.1.states()))
            }
        };
        Ok(PlannedStep { rule, chunk: part.chunk, update, layer_norms })
    }

    fn plan_scan(&mut self, part: &Part, access: Access) -> Result<Planned, BindError> {
        let window = Window::new(part, access);
        let constraints = Constraints::plain(access == Access::Elements);
        let by_group = self.control.as_ref().is_some_and(|control| control.by_group.is_some());
        let dispatch = if by_group {
            plan::reduction(&part.tensor_ranges, part.base, constraints, Seams::Apart, &self.limits)
        } else {
            let tensor_ranges: Vec<_> = part
                .tensor_ranges
                .iter()
                .map(|tensor_range| TensorRange { group: 0, ..*tensor_range })
                .collect();
            plan::reduction(&tensor_ranges, part.base, constraints, Seams::Shared, &self.limits)
        };
        let table = self.table(&window, dispatch, false)?;
        if !self.reductions.contains_key(&table.table_layout) {
            let kernel = Kernel::reduction(&self.device, &table.table_layout, self.options.grads)?;
            self.reductions.insert(table.table_layout, kernel);
        }
        let kernel = &self.reductions[&table.table_layout];
        Ok(window.planned(table, kernel, 0))
    }

    /// The table of a dispatch over a window. Checks that it stays inside the window.
    fn table(&self, window: &Window<'_>, dispatch: Dispatch, by_tensor: bool) -> Result<Table, BindError> {
        let Window { part, access, p, g } = window;
        let [stride, rows] = dispatch.workgroups;
        if rows > self.limits.workgroups {
            let (limit, value) = ("max_compute_workgroups_per_dimension", self.limits.workgroups.into());
            // The limit that a square dispatch of as many workgroups needs.
            let bound = (u64::from(stride) * u64::from(rows) - 1).isqrt() + 1;
            return Err(DeviceError::Limit { limit, value, bound }.into());
        }
        // Access by element clamps to the caller's buffers.
        let sides = if *access == Access::Vectors { &[p, g][..] } else { &[] };
        part.prove_bounds(&dispatch, sides, part.state.into())?;
        let header = Header {
            segments: to_u32(dispatch.segments.len()),
            shift: dispatch.shift,
            stride,
            p: p.base,
            g: g.base,
            p_last: p.last,
            g_last: g.last,
            partials: 0,
            // One word of four codes per vector comes before the scales.
            scales: part.state,
        };
        let (aligned, space, uniform_bytes) = (dispatch.aligned, dispatch.space, self.limits.uniform_bytes);
        let target = self.target;
        let table_layout = TableLayout { access: *access, aligned, space, uniform_bytes, by_tensor, target };
        Ok(Table { table_layout, header, base: part.base, dispatch })
    }
}

impl<'a> Window<'a> {
    fn new(part: &'a Part, access: Access) -> Self {
        Self { part, access, p: part.window(&part.p, access), g: part.window(&part.g, access) }
    }

    /// Whether parameters and gradients share a buffer. Refuses bindings that would overlap in it.
    fn refuse_shared_blocks(&self) -> Result<bool, BindError> {
        let (p, g) = (&self.p, &self.g);
        let shares = p.range.buffer == g.range.buffer;
        if shares {
            let (first, second) = if p.range.start < g.range.start { (p, g) } else { (g, p) };
            first.range.refuse_overlap(&second.range)?;
        }
        Ok(shares)
    }

    fn planned(&self, table: Table, kernel: &Kernel, states: u32) -> Planned {
        let (p, g) = (self.p.range.clone(), self.g.range.clone());
        Planned { table, kernel: kernel.clone(), states, p, g }
    }
}
