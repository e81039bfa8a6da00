//! Binding: the caller's buffers, checked against the layout and made ready to record.

use super::{Bound, BoundDispatch, Look, Optimizer};
use crate::bind::{ByteRange, Form, Named, Part, Tensors, View};
use crate::control::{Control, reduce_workgroups};
use crate::device::{ALIGNMENT, ELEMENT, checked, create_buffer, create_filled};
use crate::error::Error;
use crate::kernel::{
    Access, BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, Kernel, Key, REDUCE_BINDING_G,
    REDUCE_BINDING_PARTIALS,
};
use crate::layout::Tensor;
use crate::plan::{self, Dispatch, HEADER_BYTES, Header, QUAD, Space, WholeTile};
use crate::rules::Rule;
use std::collections::HashMap;

/// Bytes of a partial result: three sums and flags.
const PARTIAL_BYTES: u64 = 16;

impl<R: Rule> Optimizer<R> {
    /// Checks the caller's buffers against the layout and prepares them for recording.
    ///
    /// Compiles kernels on first use. Call it outside of the training loop, and again when buffers change.
    ///
    /// # Errors
    /// Missing, unknown or repeated tensors; buffers without usage `STORAGE`; offsets that are no multiples of 4; ranges beyond a buffer's end;
    /// ranges that overlap, or lie in one 256-byte block of one buffer where parameters and gradients share it; what the device refuses.
    pub fn bind(&mut self, tensors: &Tensors<'_>) -> Result<Bound, Error> {
        let parts = match &tensors.0 {
            Form::Flat(p, g) => self.flat_parts(*p, *g)?,
            Form::Each(each) => self.each_parts(each)?,
        };
        let mut planned = Vec::new();
        let mut partials = 0;
        for part in &parts {
            for (part, access) in part.split() {
                let mut plan = self.plan(&part, access)?;
                plan.header.partials = partials;
                let [x, y] = reduce_workgroups(plan.dispatch.workgroups, self.limits.workgroups);
                partials += x * y;
                planned.push(plan);
            }
        }
        self.build(&planned, partials)
    }

    fn flat_parts<'a>(&self, p: View<'a>, g: View<'a>) -> Result<Vec<Part<'a>>, Error> {
        let bytes = self.layout.len() * ELEMENT;
        let p = Named::new("parameters", p, bytes)?;
        let g = Named::new("gradients", g, bytes)?;
        self.refuse_overlaps(vec![p.range(bytes), g.range(bytes)])?;
        let parts = self.chunks.iter().enumerate().map(|(chunk, c)| Part {
            chunk,
            base: c.start,
            pieces: c.pieces.clone(),
            p: p.at(c.start as i64),
            g: g.at(c.start as i64),
        });
        Ok(parts.collect())
    }

    fn each_parts<'a>(&self, each: &[(&str, View<'a>, View<'a>)]) -> Result<Vec<Part<'a>>, Error> {
        let mut views = HashMap::new();
        for (name, p, g) in each {
            let tensor = self.layout.tensor(name)?;
            if views.insert(tensor.offset, (*p, *g)).is_some() {
                return Err(Error::Duplicate { what: "tensor", name: (*name).into() });
            }
        }
        if views.len() != self.layout.tensors().len() {
            return Err(Error::Mismatch {
                what: "bound tensors",
                found: views.len() as u64,
                expected: self.layout.tensors().len() as u64,
            });
        }
        let tensors: Vec<&Tensor> = self.layout.by_offset().collect();
        let mut named = Vec::new();
        let mut ranges = Vec::new();
        for tensor in &tensors {
            let (p, g) = views[&tensor.offset];
            let bytes = tensor.len * ELEMENT;
            let p = Named::new(&format!("parameters of tensor {:?}", tensor.name), p, bytes)?;
            let g = Named::new(&format!("gradients of tensor {:?}", tensor.name), g, bytes)?;
            ranges.extend([p.range(bytes), g.range(bytes)]);
            named.push((p, g));
        }
        self.refuse_overlaps(ranges)?;
        let mut parts = Vec::new();
        for (chunk, c) in self.chunks.iter().enumerate() {
            for piece in &c.pieces {
                let (p, g) = &named[piece.tensor];
                let base = piece.start / QUAD * QUAD;
                let first = base as i64 - tensors[piece.tensor].offset as i64;
                parts.push(Part { chunk, base, pieces: vec![*piece], p: p.at(first), g: g.at(first) });
            }
        }
        Ok(parts)
    }

    /// Refuses ranges of one buffer that share bytes, with each other or with our state.
    fn refuse_overlaps(&self, mut ranges: Vec<ByteRange>) -> Result<(), Error> {
        ranges.extend(self.state.iter().flatten().map(|buffer| ByteRange {
            what: "optimizer state".into(),
            buffer: buffer.clone(),
            start: 0,
            end: buffer.size(),
        }));
        ranges.extend(self.control.iter().map(|control| ByteRange {
            what: "the loss scale".into(),
            buffer: control.state.clone(),
            start: 0,
            end: control.state.size(),
        }));
        ranges.sort_by(|a, b| (&a.buffer, a.start).cmp(&(&b.buffer, b.start)));
        for pair in ranges.windows(2) {
            pair[0].refuse_overlap(&pair[1])?;
        }
        Ok(())
    }

    fn plan(&mut self, part: &Part<'_>, access: Access) -> Result<Planned, Error> {
        let dispatch = plan::dispatch(&part.pieces, part.base, access == Access::Elements, &self.limits);
        let [_, rows] = dispatch.workgroups;
        if rows > self.limits.workgroups {
            return Err(Error::DeviceLimit {
                limit: "max_compute_workgroups_per_dimension",
                value: self.limits.workgroups.into(),
                bound: rows.into(),
            });
        }
        let p = part.window(&part.p, access);
        let g = part.window(&part.g, access);
        if access == Access::Quads {
            let state = self.chunks[part.chunk].state_quads.into();
            for (base, quads) in [(p.base, p.quads()), (g.base, g.quads())] {
                part.prove_bounds(&dispatch, base, quads, state)?;
            }
        }
        let shares_buffer = p.range.buffer == g.range.buffer;
        if shares_buffer {
            let (first, second) = if p.range.start < g.range.start { (&p, &g) } else { (&g, &p) };
            first.range.refuse_overlap(&second.range)?;
        }
        let key = Key {
            access,
            whole: dispatch.whole,
            single: dispatch.tiles.len() == 1,
            space: dispatch.space,
            writable_gradients: shares_buffer || self.options.zero_gradients,
            groups: self.layout.groups().len() as u32,
            kept: self.kept.clone(),
            uniform_bytes: self.limits.uniform_bytes,
            around: self.options.around(),
        };
        if !self.kernels.contains_key(&key) {
            let kernel = Kernel::new::<R>(&self.device, &self.scalars_layout, &key)?;
            self.kernels.insert(key.clone(), kernel);
        }
        if self.control.is_some() && !self.reductions.contains_key(&key) {
            let kernel = Kernel::reduction(&self.device, &key)?;
            self.reductions.insert(key.clone(), kernel);
        }
        let header = Header {
            records: dispatch.tiles.len() as u32,
            shift: dispatch.shift,
            stride: dispatch.workgroups[0],
            p: p.base,
            g: g.base,
            p_last: p.last,
            g_last: g.last,
            partials: 0,
        };
        Ok(Planned { chunk: part.chunk, key, dispatch, header, p: p.range, g: g.range })
    }

    fn build(&self, planned: &[Planned], partials: u32) -> Result<Bound, Error> {
        // All tables in one buffer. A uniform table is declared at its full size, so the last one needs room behind it.
        let mut bytes = Vec::new();
        let mut windows = Vec::new();
        for plan in planned {
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
            let offset = bytes.len() as u64;
            plan.write_table(&mut bytes);
            let size = match plan.key.space {
                Space::Uniform => {
                    let tiles = plan::uniform_tiles(self.limits.uniform_bytes, plan.key.whole);
                    plan.key.table_bytes(tiles as usize)
                }
                Space::Storage => bytes.len() as u64 - offset,
            };
            windows.push((offset, size));
        }
        let total = windows.iter().map(|(offset, size)| offset + size).max().unwrap_or(0);
        bytes.resize(total as usize, 0);
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE;
        let table = create_filled(&self.device, "tables", &bytes, usage)?;
        let mut dispatches = Vec::new();
        let mut look = match &self.control {
            Some(control) => Some(self.look(control, partials)?),
            None => None,
        };
        for (plan, (offset, size)) in planned.iter().zip(windows) {
            if let Some((look, results)) = &mut look {
                let kernel = &self.reductions[&plan.key];
                let entries = [
                    entry(BINDING_TABLE, &table, offset, size),
                    range_entry(REDUCE_BINDING_G, &plan.g),
                    entry(REDUCE_BINDING_PARTIALS, results, 0, results.size()),
                ];
                look.reductions.push(BoundDispatch {
                    pipeline: kernel.pipeline.clone(),
                    group: self.bind_group(&kernel.layout, &entries)?,
                    workgroups: reduce_workgroups(plan.dispatch.workgroups, self.limits.workgroups),
                });
            }
            let kernel = &self.kernels[&plan.key];
            let mut entries = vec![
                entry(BINDING_TABLE, &table, offset, size),
                range_entry(BINDING_P, &plan.p),
                range_entry(BINDING_G, &plan.g),
            ];
            for (binding, buffer) in (BINDING_STATE..).zip(&self.state[plan.chunk]) {
                entries.push(entry(binding, buffer, 0, buffer.size()));
            }
            dispatches.push(BoundDispatch {
                pipeline: kernel.pipeline.clone(),
                group: self.bind_group(&kernel.layout, &entries)?,
                workgroups: plan.dispatch.workgroups,
            });
        }
        let results = look.as_ref().map_or(0, |(_, results)| results.size());
        let look = look.map(|(look, _)| look);
        Ok(Bound { owner: self.identity.clone(), look, dispatches, device_bytes: total + results })
    }

    /// Room for `partials` partial results, and the control kernel's bind group.
    fn look(&self, control: &Control, partials: u32) -> Result<(Look, wgpu::Buffer), Error> {
        let bytes = u64::from(partials) * PARTIAL_BYTES;
        let results = create_buffer(&self.device, "partial results", bytes, wgpu::BufferUsages::STORAGE)?;
        let entries = [
            entry(0, &results, 0, bytes),
            entry(1, &control.live, 0, control.live.size()),
            entry(2, &control.state, 0, control.state.size()),
        ];
        let control = self.bind_group(&control.layout, &entries)?;
        Ok((Look { reductions: Vec::new(), control, partials }, results))
    }

    fn bind_group(
        &self,
        layout: &wgpu::BindGroupLayout,
        entries: &[wgpu::BindGroupEntry<'_>],
    ) -> Result<wgpu::BindGroup, Error> {
        let descriptor = wgpu::BindGroupDescriptor { label: Some("wgpu-optim tensors"), layout, entries };
        checked(&self.device, || "a bind group".into(), || self.device.create_bind_group(&descriptor))
    }
}

struct Planned {
    chunk: usize,
    key: Key,
    dispatch: Dispatch,
    header: Header,
    p: ByteRange,
    g: ByteRange,
}

impl Planned {
    fn write_table(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(bytemuck::bytes_of(&self.header));
        bytes.resize(bytes.len() + HEADER_BYTES - size_of::<Header>(), 0);
        for tile in &self.dispatch.tiles {
            if self.key.whole {
                bytes.extend_from_slice(bytemuck::bytes_of(&WholeTile {
                    quad: tile.quad,
                    state: tile.state,
                    quads: tile.quads,
                    group: tile.group,
                }));
            } else {
                bytes.extend_from_slice(bytemuck::bytes_of(tile));
            }
        }
    }
}

fn entry(binding: u32, buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(size),
        }),
    }
}

fn range_entry(binding: u32, range: &ByteRange) -> wgpu::BindGroupEntry<'_> {
    entry(binding, &range.buffer, range.start, range.end - range.start)
}
