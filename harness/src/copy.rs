//! The copy kernel, to which bandwidths are compared.

use crate::{Gpu, wgpu};

/// The measure of bandwidth: a plain copy, one `vec4<f32>` per thread, 8 bytes moved per element.
#[derive(Debug)]
pub struct Copy {
    pipeline: wgpu::ComputePipeline,
    groups: Vec<(wgpu::BindGroup, u32, u32)>,
}

impl Copy {
    /// Prepares to copy `elements` (a multiple of 64) f32 from `from` to `to`. The binding limit sets the
    /// number of dispatches.
    #[must_use]
    pub fn new(gpu: &Gpu, from: &wgpu::Buffer, to: &wgpu::Buffer, elements: u64) -> Self {
        const SOURCE: &str = "
            @group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
            @group(0) @binding(1) var<storage, read_write> destination: array<vec4<f32>>;
            @compute @workgroup_size(256)
            fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>) {
                let i = id.y * n.x * 256u + id.x;
                if i < arrayLength(&source) { destination[i] = source[i]; }
            }";
        let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("copy"),
            source: wgpu::ShaderSource::Wgsl(SOURCE.into()),
        });
        let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("copy"),
            layout: None,
            module: &module,
            entry_point: Some("copy"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let limits = gpu.device.limits();
        let chunk = limits.max_storage_buffer_binding_size.min(1 << 30) / 256 * 256;
        let bytes = elements * 4;
        let groups = (0..bytes.div_ceil(chunk)).map(|i| {
            let size = chunk.min(bytes - i * chunk);
            let binding = |buffer| {
                wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset: i * chunk,
                    size: wgpu::BufferSize::new(size),
                })
            };
            let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[
                    wgpu::BindGroupEntry { binding: 0, resource: binding(from) },
                    wgpu::BindGroupEntry { binding: 1, resource: binding(to) },
                ],
            });
            let workgroups = size.div_ceil(16 * 256) as u32;
            let rows = workgroups.div_ceil(limits.max_compute_workgroups_per_dimension);
            (group, workgroups.div_ceil(rows), rows)
        });
        let groups = groups.collect();
        Self { pipeline, groups }
    }

    /// Records the copy.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        for (group, x, y) in &self.groups {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }
}
