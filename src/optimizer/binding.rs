//! Binding: the caller's buffers, checked against the layout and made ready to record.

use super::{Bound, BoundDispatch, Look, Optimizer, State, block_quads};
use crate::bind::{self, ByteRange, Form, Named, Part, Tensors, View};
use crate::control::Control;
use crate::device::{ALIGNMENT, ELEMENT, checked, create_buffer, create_filled};
use crate::error::Error;
use crate::format::{Format, tensor_key};
use crate::kernel::{
    Access, BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, Key, REDUCE_BINDING_G,
    REDUCE_BINDING_PARTIALS, Storage, Walk,
};
use crate::layout::Tensor;
use crate::pipeline::Kernel;
use crate::plan::{
    self, Dispatch, HEADER_BYTES, Header, Piece, QUAD, Seams, SharedTile, Space, TENSOR_BYTES, Tiling,
    WholeTile,
};
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
    /// ranges that overlap, or lie in one 256-byte block of one buffer where parameters and gradients share it; [`Error::OddElement`]; more storage bindings than the device has;
    /// what it refuses.
    pub fn bind(&mut self, tensors: &Tensors<'_>) -> Result<Bound, Error> {
        let parts = match &tensors.0 {
            Form::Flat(p, g) => self.flat_parts(*p, *g)?,
            Form::Each(each) => self.each_parts(each)?,
        };
        let mut planned = Vec::new();
        for part in &parts {
            for (part, access) in part.split(block_quads(self.state[part.chunk].format)) {
                planned.push(self.plan(&part, access)?);
            }
        }
        self.build(planned)
    }

    fn flat_parts<'a>(&self, p: View<'a>, g: View<'a>) -> Result<Vec<Part<'a>>, Error> {
        let (params, grads) = (self.options.params, self.options.grads);
        let [p_bytes, g_bytes] = [params, grads].map(|format| self.layout.len() * format.bytes());
        let p = Named::new("parameters", p, p_bytes)?;
        let g = Named::new("gradients", g, g_bytes)?;
        self.refuse_overlaps(vec![p.range(p_bytes), g.range(g_bytes)])?;
        let parts = self.state.iter().enumerate().map(|(i, State { chunk, .. })| Part {
            chunk: i,
            base: chunk.start,
            pieces: chunk.pieces.clone(),
            p: p.at(chunk.start as i64, params),
            g: g.at(chunk.start as i64, grads),
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
        let (params, grads) = (self.options.params, self.options.grads);
        let mut named = Vec::new();
        let mut ranges = Vec::new();
        for tensor in &tensors {
            let (p, g) = views[&tensor.offset];
            let check = |side, view, format: Format| {
                let (what, offset) = (format!("{side} of tensor {:?}", tensor.name), tensor.offset);
                if format.bytes() < ELEMENT && !offset.is_multiple_of(2) {
                    return Err(Error::OddElement { what, offset });
                }
                let bytes = tensor.len * format.bytes();
                let named = Named::new(&what, view, bytes)?;
                let range = named.range(bytes);
                Ok((named, range))
            };
            let (p, p_range) = check("parameters", p, params)?;
            let (g, g_range) = check("gradients", g, grads)?;
            ranges.extend([p_range, g_range]);
            named.push((p, g));
        }
        self.refuse_overlaps(ranges)?;
        let mut parts = Vec::new();
        for (chunk, state) in self.state.iter().enumerate() {
            for piece in &state.chunk.pieces {
                let (p, g) = &named[piece.tensor];
                let base = piece.start / QUAD * QUAD;
                let first = base as i64 - tensors[piece.tensor].offset as i64;
                parts.push(Part {
                    chunk,
                    base,
                    pieces: vec![*piece],
                    p: p.at(first, params),
                    g: g.at(first, grads),
                });
            }
        }
        Ok(parts)
    }

    /// Refuses ranges of one buffer that share bytes, with each other or with our state.
    pub(crate) fn refuse_overlaps(&self, mut ranges: Vec<ByteRange>) -> Result<(), Error> {
        ranges.extend(self.buffers().map(|buffer| ByteRange {
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
        let window =
            Window { part, access, p: part.window(&part.p, access), g: part.window(&part.g, access) };
        let (p, g) = (&window.p, &window.g);
        let shares_buffer = p.range.buffer == g.range.buffer;
        if shares_buffer {
            let (first, second) = if p.range.start < g.range.start { (p, g) } else { (g, p) };
            first.range.refuse_overlap(&second.range)?;
        }
        let by_element = access == Access::Elements;
        let (base, limits) = (part.base, &self.limits);
        let of = |owner: fn(&Piece) -> u32| -> Vec<Piece> {
            part.pieces.iter().map(|piece| Piece { group: owner(piece), ..*piece }).collect()
        };
        let tensors = of(|piece| piece.tensor as u32);
        let pieces = if self.layers.is_some() { &tensors } else { &part.pieces };
        let storage = Storage { states: self.state[part.chunk].format, ..self.options.storage() };
        let by_tensor = storage.stochastic;
        let tiling = Tiling { by_element, block: block_quads(storage.states), by_tensor };
        let dispatch = if self.options.norms {
            plan::reduction(pieces, base, tiling, Seams::Shared, limits)
        } else {
            plan::dispatch(pieces, base, tiling, limits)
        };
        let step = self.table(&window, dispatch, by_tensor)?;
        let plain = Tiling::plain(by_element);
        let key = Key {
            walk: step.walk,
            single: step.dispatch.tiles.len() == 1 && !self.options.norms,
            writable_gradients: shares_buffer || self.options.zero_gradients,
            rows: self.layout.groups().len() as u32,
            rows_space: Space::Uniform,
            kept: self.kept.clone(),
            storage,
            around: self.options.around(),
        };
        let look = match &self.control {
            None => None,
            Some(control) => {
                let reduction = if control.by_group.is_some() {
                    plan::reduction(&part.pieces, base, plain, Seams::Apart, limits)
                } else {
                    plan::reduction(&of(|_| 0), base, plain, Seams::Shared, limits)
                };
                Some(self.table(&window, reduction, false)?)
            }
        };
        let measure = match &self.layers {
            None => None,
            Some(_) => {
                let reduction = plan::reduction(&tensors, base, plain, Seams::Apart, limits);
                Some(self.table(&window, reduction, false)?)
            }
        };
        if let Some(Table { walk, .. }) = look
            && !self.reductions.contains_key(&walk)
        {
            self.reductions.insert(walk, Kernel::reduction(&self.device, &walk, self.options.grads)?);
        }
        let measuring = measure.as_ref().map(|measure| Key { walk: measure.walk, ..key.measuring() });
        if let Some(key) = measuring.iter().find(|key| !self.measures.contains_key(key)) {
            let kernel = Kernel::measure::<R>(&self.device, &self.scalars_layout, key)?;
            self.measures.insert(key.clone(), kernel);
        }
        let (key, rows) = match &self.layers {
            None => (key, &self.scalars_layout),
            Some(layers) => {
                let rows = self.layout.tensors().len() as u32;
                (Key { rows, rows_space: layers.space, ..key }, &layers.layout)
            }
        };
        let (limit, value) = ("max_storage_buffers_per_shader_stage", self.limits.storage_bindings);
        let most = measuring.iter().chain([&key]).map(Key::storage_bindings).max().unwrap_or(0);
        if most > value {
            return Err(Error::DeviceLimit { limit, value: value.into(), bound: most.into() });
        }
        if !self.kernels.contains_key(&key) {
            let kernel = Kernel::step::<R>(&self.device, rows, &key)?;
            self.kernels.insert(key.clone(), kernel);
        }
        let (p, g) = (window.p.range, window.g.range);
        Ok(Planned { chunk: part.chunk, key, step, look, measure: measure.zip(measuring), p, g })
    }

    /// The table of a dispatch over a window, which is checked to stay inside of it.
    fn table(&self, window: &Window<'_>, dispatch: Dispatch, by_tensor: bool) -> Result<Table, Error> {
        let Window { part, access, p, g } = window;
        let [stride, rows] = dispatch.workgroups;
        if rows > self.limits.workgroups {
            return Err(Error::DeviceLimit {
                limit: "max_compute_workgroups_per_dimension",
                value: self.limits.workgroups.into(),
                bound: rows.into(),
            });
        }
        let state = self.state[part.chunk].chunk.state_quads;
        // Access by element stays inside of the caller's buffers by itself.
        let sides = if *access == Access::Quads { &[p, g][..] } else { &[] };
        part.prove_bounds(&dispatch, sides, state.into())?;
        let header = Header {
            records: dispatch.tiles.len() as u32,
            shift: dispatch.shift,
            stride,
            p: p.base,
            g: g.base,
            p_last: p.last,
            g_last: g.last,
            partials: 0,
            // A word of four codes a quad comes before them.
            scales: state,
        };
        let (whole, space, uniform_bytes) = (dispatch.whole, dispatch.space, self.limits.uniform_bytes);
        let walk = Walk { access: *access, whole, space, uniform_bytes, by_tensor };
        Ok(Table { walk, header, base: part.base, dispatch })
    }

    fn build(&self, mut planned: Vec<Planned>) -> Result<Bound, Error> {
        let (mut of_looks, mut of_tensors, mut of_steps) =
            (Owners::default(), Owners::default(), Owners::default());
        let group_of: Vec<_> = self.layout.by_offset().map(|tensor| tensor.group as u32).collect();
        for plan in &mut planned {
            if let Some(look) = &mut plan.look {
                of_looks.number(look);
            }
            if let Some((measure, _)) = &mut plan.measure {
                of_tensors.number(measure);
                // The tiles' own groups from here on: their scalars are what the first phase reads. Of lanes it asks only whether they are a tensor's.
                for tile in &mut measure.dispatch.tiles {
                    tile.group = group_of[tile.group as usize];
                }
            }
            if self.options.norms {
                of_steps.number(&mut plan.step);
            }
        }
        let mut tables = Tables::default();
        let tensors: Vec<_> = self.layout.by_offset().collect();
        for plan in &planned {
            for table in plan.tables() {
                tables.write(table, &tensors);
            }
        }
        let mut memory = Memory { device: &self.device, bytes: 0 };
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE;
        let (buffer, windows) = (memory.filled("tables", &tables.finish(), usage)?, tables.windows);
        let mut windows = windows.into_iter();
        let mut look = match &self.control {
            None => None,
            Some(control) => Some(self.look(&mut memory, control, &of_looks)?),
        };
        let mut measure = match &self.layers {
            None => None,
            Some(layers) => {
                let tensors = self.layout.tensors().len() as u32;
                let results = memory.results(2 * of_tensors.len())?;
                let more = [&layers.rows, &layers.groups];
                let fold = self.fold(&mut memory, &layers.kernel, &of_tensors, tensors, &results, &more)?;
                Some((Vec::new(), fold, results))
            }
        };
        let norms = match self.control.as_ref().and_then(|control| Some((control, control.of_all.as_ref()?)))
        {
            None => None,
            Some((control, kernel)) => {
                let results = memory.results(2 * of_steps.len())?;
                // All of one owner.
                let owners = Owners(vec![0; of_steps.len() as usize]);
                let fold = self.fold(&mut memory, kernel, &owners, 1, &results, &[&control.state])?;
                Some((fold, results))
            }
        };
        let mut dispatches = Vec::new();
        for plan in &planned {
            let mut table = || {
                let (offset, size) = windows.next().unwrap_or_default();
                entry(BINDING_TABLE, &buffer, offset, size)
            };
            // In the order of `Planned::tables`.
            let mut step = vec![table(), range_entry(BINDING_P, &plan.p), range_entry(BINDING_G, &plan.g)];
            for (binding, buffer) in (BINDING_STATE..).zip(&self.state[plan.chunk].buffers) {
                step.push(whole_entry(binding, buffer));
            }
            let mut first_phase = step.clone();
            if let Some((_, results)) = &norms {
                step.push(whole_entry(BINDING_STATE + plan.key.states(), results));
            }
            let workgroups = plan.step.dispatch.workgroups;
            dispatches.push(self.bound(&self.kernels[&plan.key], &step, workgroups)?);
            if let (Some(planned), Some((look, results))) = (&plan.look, &mut look) {
                let entries = [
                    table(),
                    range_entry(REDUCE_BINDING_G, &plan.g),
                    whole_entry(REDUCE_BINDING_PARTIALS, results),
                ];
                let kernel = &self.reductions[&planned.walk];
                look.reductions.push(self.bound(kernel, &entries, planned.dispatch.workgroups)?);
            }
            if let (Some((planned, key)), Some((measures, _, results))) = (&plan.measure, &mut measure) {
                first_phase[0] = table();
                first_phase.truncate((BINDING_STATE + key.states()) as usize);
                first_phase.push(whole_entry(BINDING_STATE + key.states(), results));
                let workgroups = planned.dispatch.workgroups;
                measures.push(self.bound(&self.measures[key], &first_phase, workgroups)?);
            }
        }
        Ok(Bound {
            owner: self.identity.clone(),
            look: look.map(|(look, _)| look),
            measure: measure.map(|(measures, fold, _)| (measures, fold)),
            dispatches,
            norms: norms.map(|(fold, _)| fold),
            device_bytes: memory.bytes,
        })
    }

    /// Room for the gradients' partial results, and what takes them together.
    fn look(
        &self,
        memory: &mut Memory<'_>,
        control: &Control,
        owners: &Owners,
    ) -> Result<(Look, wgpu::Buffer), Error> {
        let results = memory.results(owners.len())?;
        let (mut reaching, mut partials, mut by_group) = (results.clone(), owners.len(), None);
        if let Some(kernel) = &control.by_group {
            partials = self.layout.groups().len() as u32;
            reaching = memory.results(partials)?;
            by_group = Some(self.fold(memory, kernel, owners, partials, &results, &[&reaching])?);
        }
        let buffers = [&reaching, &control.live, &control.state];
        let entries: Vec<_> =
            (0..).zip(buffers).map(|(binding, buffer)| whole_entry(binding, buffer)).collect();
        let control = self.bound(&control.kernel, &entries, [1, 1])?;
        Ok((Look { reductions: Vec::new(), by_group, control, partials }, results))
    }

    /// The kernel that adds up `results` of `count` owners, with what it binds behind them.
    fn fold(
        &self,
        memory: &mut Memory<'_>,
        kernel: &Kernel,
        owners: &Owners,
        count: u32,
        results: &wgpu::Buffer,
        more: &[&wgpu::Buffer],
    ) -> Result<BoundDispatch, Error> {
        let list = owners.list(count);
        let list = memory.filled(
            "owners of partial results",
            bytemuck::cast_slice(&list),
            wgpu::BufferUsages::STORAGE,
        )?;
        let buffers = [&list, results].into_iter().chain(more.iter().copied());
        let entries: Vec<_> =
            (0..).zip(buffers).map(|(binding, buffer)| whole_entry(binding, buffer)).collect();
        self.bound(kernel, &entries, [count, 1])
    }

    fn bound(
        &self,
        kernel: &Kernel,
        entries: &[wgpu::BindGroupEntry<'_>],
        workgroups: [u32; 2],
    ) -> Result<BoundDispatch, Error> {
        let layout = &kernel.layout;
        let descriptor = wgpu::BindGroupDescriptor { label: Some("wgpu-optim tensors"), layout, entries };
        let make = || self.device.create_bind_group(&descriptor);
        let group = checked(&self.device, || "a bind group".into(), make)?;
        Ok(BoundDispatch { pipeline: kernel.pipeline.clone(), group, workgroups })
    }
}

/// What a dispatch binds of the caller's buffers.
struct Window<'a> {
    part: &'a Part<'a>,
    access: Access,
    p: bind::Window,
    g: bind::Window,
}

/// The tiles of one dispatch.
struct Table {
    walk: Walk,
    header: Header,
    /// The element that quads are counted from.
    base: u64,
    dispatch: Dispatch,
}

struct Planned {
    chunk: usize,
    key: Key,
    step: Table,
    look: Option<Table>,
    measure: Option<(Table, Key)>,
    p: ByteRange,
    g: ByteRange,
}

impl Planned {
    fn tables(&self) -> impl Iterator<Item = &Table> {
        let measure = self.measure.as_ref().map(|(measure, _)| measure);
        [&self.step].into_iter().chain(&self.look).chain(measure)
    }
}

/// All tables in one buffer, and where each of them is bound.
#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    windows: Vec<(u64, u64)>,
}

impl Tables {
    fn write(&mut self, table: &Table, tensors: &[&Tensor]) {
        let Table { walk, header, base, dispatch } = table;
        let bytes = &mut self.bytes;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        let offset = bytes.len();
        bytes.extend_from_slice(bytemuck::bytes_of(header));
        bytes.resize(offset + HEADER_BYTES, 0);
        for &plan::Tile { quad, state, quads, group, first, last, tensor } in &dispatch.tiles {
            if walk.whole {
                bytes.extend_from_slice(bytemuck::bytes_of(&WholeTile { quad, state, quads, group }));
            } else {
                let tile = SharedTile { quad, state, quads, group, first, last };
                bytes.extend_from_slice(bytemuck::bytes_of(&tile));
            }
            if walk.by_tensor {
                let tensor = tensors[tensor];
                let quads = base / QUAD + u64::from(quad) - tensor.offset / QUAD;
                let place = quads * QUAD + tensor.offset % QUAD;
                let element = [tensor_key(&tensor.name), place as u32];
                bytes.extend_from_slice(bytemuck::bytes_of(&element));
                bytes.resize(bytes.len() + TENSOR_BYTES - size_of_val(&element), 0);
            }
        }
        let size = match walk.space {
            Space::Uniform => {
                walk.table_bytes(plan::uniform_tiles(walk.uniform_bytes, walk.whole, walk.by_tensor) as usize)
            }
            Space::Storage => (bytes.len() - offset) as u64,
        };
        self.windows.push((offset as u64, size));
    }

    /// A uniform table is declared at its full size, so the last ones need room behind them.
    fn finish(&mut self) -> Vec<u8> {
        let total = self.windows.iter().map(|(offset, size)| offset + size).max().unwrap_or(0);
        self.bytes.resize(total as usize, 0);
        std::mem::take(&mut self.bytes)
    }
}

/// Whose each partial result is.
#[derive(Default)]
struct Owners(Vec<u32>);

/// A workgroup of a 2-D dispatch that lies past its table.
const NOBODY: u32 = u32::MAX;

impl Owners {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// Gives every workgroup of a dispatch a place for its partial result, which is its tile's group's.
    fn number(&mut self, table: &mut Table) {
        table.header.partials = self.len();
        let Dispatch { tiles, workgroups: [x, y], .. } = &table.dispatch;
        let end = self.0.len() + (x * y) as usize;
        self.0.extend(tiles.iter().map(|tile| tile.group));
        self.0.resize(end, NOBODY);
    }

    /// Where the results of each of `count` owners begin and the last one's end, and then their numbers.
    fn list(&self, count: u32) -> Vec<u32> {
        let mut list = vec![0; count as usize + 1];
        let mut numbers: Vec<_> = (0..self.len()).filter(|&n| self.0[n as usize] < count).collect();
        numbers.sort_by_key(|&n| self.0[n as usize]);
        for (owner, begin) in (0..).zip(&mut list) {
            let before = numbers.partition_point(|&n| self.0[n as usize] < owner);
            *begin = count + 1 + before as u32;
        }
        list.append(&mut numbers);
        list
    }
}

/// Device memory of a binding, counted.
struct Memory<'a> {
    device: &'a wgpu::Device,
    bytes: u64,
}

impl Memory<'_> {
    fn filled(
        &mut self,
        label: &str,
        bytes: &[u8],
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, Error> {
        self.bytes += bytes.len() as u64;
        create_filled(self.device, label, bytes, usage)
    }

    fn results(&mut self, count: u32) -> Result<wgpu::Buffer, Error> {
        let bytes = u64::from(count) * PARTIAL_BYTES;
        self.bytes += bytes;
        create_buffer(self.device, "partial results", bytes, wgpu::BufferUsages::STORAGE)
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

fn whole_entry(binding: u32, buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
    entry(binding, buffer, 0, buffer.size())
}

fn range_entry(binding: u32, range: &ByteRange) -> wgpu::BindGroupEntry<'_> {
    entry(binding, &range.buffer, range.start, range.end - range.start)
}
