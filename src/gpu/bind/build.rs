//! The build of bind groups from planned dispatches, with their shared memory.

use super::partials::{Memory, Targets};
use super::plan::{Planned, PlannedStep};
use super::tables::Tables;
use crate::error::DeviceError;
use crate::gpu::buffers::ByteRange;
use crate::gpu::control::Control;
use crate::gpu::device::checked;
use crate::gpu::kernel::{
    BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, REDUCE_BINDING_G, REDUCE_BINDING_PARTIALS,
};
use crate::gpu::limits::at_least;
use crate::gpu::optimizer::Optimizer;
use crate::gpu::pipeline::{Folds, Kernel};
use crate::gpu::record::{BoundDispatch, Entry, OfRule, Recorded, Scan};
use crate::narrow::to_u32;

impl Optimizer {
    pub(super) fn build(
        &self,
        mut steps: Vec<PlannedStep>,
        mut scans: Vec<Planned>,
        slow: usize,
        describes: bool,
    ) -> Result<Recorded, DeviceError> {
        // Numbers of partial sums go into the tables' headers, so they come first.
        let mut of_scan = Targets::default();
        scans.iter_mut().for_each(|scan| of_scan.number(&mut scan.table));
        let mut of_update = Targets::default();
        let mut of_tensors: Vec<_> = self.layers.iter().map(|_| Targets::default()).collect();
        for step in &mut steps {
            if let (Some(layer_norms), Some(layers)) = (&mut step.layer_norms, &self.layers[step.rule]) {
                of_tensors[step.rule].number(&mut layer_norms.table);
                // From here on segments have their group; the first phase reads the group's scalars. It only
                // tests whether a lane belongs to a tensor.
                for segment in &mut layer_norms.table.dispatch.segments {
                    segment.group = layers.group_of[segment.group as usize];
                }
            }
            if self.options.norms {
                of_update.number(&mut step.update.table);
            }
        }
        let tensors: Vec<_> = self.layout.by_offset().collect();
        let mut tables = Tables::default();
        let mut write = |planned: &Planned| tables.write(&planned.table, &tensors);
        let scan_windows: Vec<_> = scans.iter().map(&mut write).collect();
        let step_windows: Vec<_> = steps
            .iter()
            .map(|step| (write(&step.update), step.layer_norms.as_ref().map(&mut write)))
            .collect();
        let mut memory = Memory { device: &self.device, bytes: 0, contents: describes.then(Vec::new) };
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE;
        let tables = tables.finish();
        // Without a dispatch there is no table.
        let buffer = if tables.is_empty() { None } else { Some(memory.filled("tables", &tables, usage)?) };
        let table = |(offset, size)| {
            let buffer = buffer.as_ref().expect("a dispatch has a table");
            entry(BINDING_TABLE, buffer, offset, size)
        };

        let mut scan = None;
        if let Some(control) = &self.control {
            let (mut bound, sums) = self.scan(&mut memory, control, &of_scan)?;
            for (planned, window) in scans.iter().zip(scan_windows) {
                let entries = vec![
                    table(window),
                    range_entry(REDUCE_BINDING_G, &planned.g),
                    whole_entry(REDUCE_BINDING_PARTIALS, &sums),
                ];
                bound.reductions.push(self.bound(&planned.kernel, entries, planned.workgroups())?);
            }
            scan = Some(bound);
        }
        let mut norms = None;
        let mut update_sums = None;
        if let Some((control, kernel)) = self.control.as_ref().and_then(|c| Some((c, c.of_all.as_ref()?))) {
            let sums = memory.sums(2 * of_update.len())?;
            let one = of_update.as_one();
            norms = Some(self.fold(&mut memory, kernel, &one, 1, &sums, &[&control.state])?);
            update_sums = Some(sums);
        }
        let mut rules: Vec<_> = self.layers.iter().map(|_| OfRule::default()).collect();
        let mut tensor_sums = Vec::new();
        for ((layers, targets), rule) in self.layers.iter().zip(&of_tensors).zip(&mut rules) {
            tensor_sums.push(match layers {
                None => None,
                Some(_) if targets.len() == 0 => None,
                Some(layers) => {
                    let sums = memory.sums(2 * targets.len())?;
                    let (count, more) = (to_u32(layers.group_of.len()), [&layers.scalars, &layers.groups]);
                    let fold = self.fold(&mut memory, &layers.folds, targets, count, &sums, &more)?;
                    rule.ratio = Some(fold);
                    Some(sums)
                }
            });
        }
        for (step, (update_window, norms_window)) in steps.iter().zip(step_windows) {
            let entries = |planned: &Planned, window, sums: Option<&_>| {
                let states = &self.state[step.chunk].buffers[..planned.states as usize];
                let mut entries = vec![
                    table(window),
                    range_entry(BINDING_P, &planned.p),
                    range_entry(BINDING_G, &planned.g),
                ];
                let bound = (BINDING_STATE..).zip(states);
                entries.extend(bound.map(|(binding, buffer)| whole_entry(binding, buffer)));
                entries.extend(sums.map(|sums| whole_entry(BINDING_STATE + planned.states, sums)));
                self.bound(&planned.kernel, entries, planned.workgroups())
            };
            let rule = &mut rules[step.rule];
            rule.updates.push(entries(&step.update, update_window, update_sums.as_ref())?);
            if let (Some(layer_norms), Some(window)) = (&step.layer_norms, norms_window) {
                rule.layer_norms.push(entries(layer_norms, window, tensor_sums[step.rule].as_ref())?);
            }
        }
        let (device_bytes, contents) = (memory.bytes, memory.contents.unwrap_or_default());
        Ok(Recorded { revision: self.revision, scan, rules, norms, slow, device_bytes, contents })
    }

    /// Allocates the gradients' partial sums, and builds the kernels that add them up.
    fn scan(
        &self,
        memory: &mut Memory<'_>,
        control: &Control,
        targets: &Targets,
    ) -> Result<(Scan, wgpu::Buffer), DeviceError> {
        let sums = memory.sums(targets.len())?;
        let (mut reaching, mut partials, mut by_group) = (sums.clone(), targets.len(), None);
        if let Some(kernel) = &control.by_group {
            partials = to_u32(self.layout.groups().len());
            reaching = memory.sums(partials)?;
            by_group = Some(self.fold(memory, kernel, targets, partials, &sums, &[&reaching])?);
        }
        let buffers = [&reaching, &control.live, &control.state];
        let entries = (0..).zip(buffers).map(|(binding, buffer)| whole_entry(binding, buffer)).collect();
        let control = self.bound(&control.kernel, entries, [1, 1])?;
        Ok((Scan { reductions: Vec::new(), by_group, control, partials }, sums))
    }

    /// The dispatch that adds up `sums` of `count` targets, with the buffers that it binds after them.
    fn fold(
        &self,
        memory: &mut Memory<'_>,
        folds: &Folds,
        targets: &Targets,
        count: u32,
        sums: &wgpu::Buffer,
        more: &[&wgpu::Buffer],
    ) -> Result<BoundDispatch, DeviceError> {
        let list = targets.list(count);
        let (label, usage) = ("targets of partial sums", wgpu::BufferUsages::STORAGE);
        let list = memory.filled(label, bytemuck::cast_slice(&list), usage)?;
        let buffers = [&list, sums].into_iter().chain(more.iter().copied());
        let entries = (0..).zip(buffers).map(|(binding, buffer)| whole_entry(binding, buffer)).collect();
        let (kernel, workgroups) = folds.of(targets.most(count), count);
        self.bound(kernel, entries, workgroups)
    }

    fn bound(
        &self,
        kernel: &Kernel,
        entries: Vec<Entry>,
        workgroups: [u32; 2],
    ) -> Result<BoundDispatch, DeviceError> {
        let most = entries.iter().map(|entry| entry.size).max().unwrap_or(0);
        at_least("max_storage_buffer_binding_size", self.limits.binding_bytes, most)?;
        let layout = &kernel.layout;
        let group: Vec<_> = entries.iter().map(Entry::of_wgpu).collect();
        let descriptor =
            wgpu::BindGroupDescriptor { label: Some("wgpu-optim tensors"), layout, entries: &group };
        let make = || self.device.create_bind_group(&descriptor);
        let group = checked(&self.device, || "a bind group".into(), make)?;
        Ok(BoundDispatch { kernel: kernel.clone(), group, entries, workgroups })
    }
}

impl Planned {
    fn workgroups(&self) -> [u32; 2] {
        self.table.dispatch.workgroups
    }
}

impl Entry {
    fn of_wgpu(&self) -> wgpu::BindGroupEntry<'_> {
        let size = wgpu::BufferSize::new(self.size);
        let resource = wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size };
        wgpu::BindGroupEntry { binding: self.binding, resource: wgpu::BindingResource::Buffer(resource) }
    }
}

fn entry(binding: u32, buffer: &wgpu::Buffer, offset: u64, size: u64) -> Entry {
    Entry { binding, buffer: buffer.clone(), offset, size }
}

fn whole_entry(binding: u32, buffer: &wgpu::Buffer) -> Entry {
    entry(binding, buffer, 0, buffer.size())
}

fn range_entry(binding: u32, range: &ByteRange) -> Entry {
    entry(binding, &range.buffer, range.start, range.end - range.start)
}
