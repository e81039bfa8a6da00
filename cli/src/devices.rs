//! The adapters of the machine, and the one that would be chosen.

use harness::{SOFTWARE_VULKAN, adapters, choose, instance};
use serde::Serialize;

/// One device that the program could run on.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `gpu` or `cpu`.
    pub device: &'static str,
    /// The adapter's name.
    pub adapter: Option<String>,
    /// Vulkan, Metal, …
    pub backend: Option<String>,
    /// Discrete, integrated, software, …
    pub kind: Option<String>,
    /// The driver and its version.
    pub driver: Option<String>,
    /// The limits that bound a step.
    pub limits: Option<Limits>,
    /// Whether `--device` would choose it.
    pub chosen: bool,
}

/// Limits with their names in `wgpu::Limits`.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Bytes of a buffer.
    pub max_buffer_size: u64,
    /// Bytes of a buffer that one dispatch binds. Longer buffers take several dispatches.
    pub max_storage_buffer_binding_size: u64,
    /// Parameters, gradients, a table and the state slots.
    pub max_storage_buffers_per_shader_stage: u32,
    /// Bytes for the scalars of all groups.
    pub max_uniform_buffer_binding_size: u64,
    /// Workgroups in a row.
    pub max_compute_workgroups_per_dimension: u32,
    /// Threads in a workgroup.
    pub max_compute_invocations_per_workgroup: u32,
}

/// All devices, best first, the CPU engine last.
#[must_use]
pub fn devices(choice: crate::device::Choice) -> Vec<Row> {
    use crate::device::Choice;
    let instance = instance();
    let chosen = if choice == Choice::Cpu { None } else { choose(&instance).ok().map(|a| a.get_info()) };
    let mut rows = Vec::new();
    for adapter in adapters(&instance) {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        // Two equal cards have equal infos, and the first is taken.
        let taken = rows.iter().any(|row: &Row| row.chosen);
        rows.push(Row {
            device: "gpu",
            chosen: !taken && chosen.as_ref() == Some(&info),
            backend: Some(info.backend.to_string()),
            kind: Some(format!("{:?}", info.device_type)),
            driver: Some(format!("{} {}", info.driver, info.driver_info).trim().to_owned()),
            adapter: Some(info.name),
            limits: Some(Limits {
                max_buffer_size: limits.max_buffer_size,
                max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
                max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
                max_uniform_buffer_binding_size: limits.max_uniform_buffer_binding_size,
                max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
                max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            }),
        });
    }
    rows.push(Row {
        device: "cpu",
        adapter: None,
        backend: None,
        kind: None,
        driver: None,
        limits: None,
        chosen: choice != Choice::Gpu && chosen.is_none(),
    });
    rows
}

/// Advice for a machine without an adapter.
#[must_use]
pub fn hint() -> String {
    format!("no GPU adapter; the package {SOFTWARE_VULKAN} has a software Vulkan")
}
