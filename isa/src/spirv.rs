//! Compiles WGSL to the SPIR-V that wgpu passes to a Vulkan driver.

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, ShaderStage};

/// A compiled shader with the parts of a pipeline layout.
pub(crate) struct Module {
    pub(crate) words: Vec<u32>,
    pub(crate) bindings: Vec<Binding>,
}

/// A buffer that the shader names.
pub(crate) struct Binding {
    pub(crate) group: u32,
    pub(crate) binding: u32,
    pub(crate) uniform: bool,
}

/// Compiles a kernel with the settings of wgpu-hal's Vulkan half for a module that is created by
/// `create_shader_module_trusted(.., ShaderRuntimeChecks::unchecked())`, on a device of Vulkan 1.3 with all
/// optional capabilities that naga makes use of.
pub(crate) fn compile(wgsl: &str, entry_point: &str) -> Result<Module, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|error| error.emit_to_string(wgsl))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
    let info = validator.validate(&module).map_err(|error| error.emit_to_string(wgsl))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        fake_missing_bindings: true,
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..spv::Options::default()
    };
    let pipeline =
        spv::PipelineOptions { entry_point: entry_point.into(), shader_stage: ShaderStage::Compute };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
    let bindings = module.global_variables.iter().filter_map(|(_, variable)| {
        let place = variable.binding?;
        let uniform = variable.space == AddressSpace::Uniform;
        Some(Binding { group: place.group, binding: place.binding, uniform })
    });
    Ok(Module { words, bindings: bindings.collect() })
}
