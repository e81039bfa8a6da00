//! Mesa's driver for AMD GPUs as a compiler: a device of null hardware, which runs nothing.

use crate::spirv::{Binding, Module};
use ash::khr::pipeline_executable_properties;
use ash::vk;
use std::collections::HashMap;
use std::env;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;

/// The variable with the GPU for which Mesa compiles. Mesa reads it when an instance lists its devices.
pub(crate) const FAMILY_VARIABLE: &str = "RADV_FORCE_FAMILY";
/// The name of the driver's manifest.
const MANIFESTS: [&str; 3] = ["radeon_icd.x86_64.json", "radeon_icd.json", "radeon_icd.aarch64.json"];
const MANIFEST_FOLDERS: [&str; 3] =
    ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];

/// The driver's manifest.
pub(crate) fn manifest() -> Option<String> {
    let all = MANIFEST_FOLDERS.iter().flat_map(|folder| MANIFESTS.map(|file| format!("{folder}/{file}")));
    all.into_iter().find(|path| Path::new(path).exists())
}

/// The compiler's report on a pipeline.
pub(crate) struct Compiled {
    pub(crate) statistics: HashMap<String, u64>,
    pub(crate) assembly: String,
}

/// A device that compiles.
pub(crate) struct Compiler {
    // Dropped last: the others' functions are in its library.
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    properties: pipeline_executable_properties::Device,
    /// The version of Mesa, from the driver.
    pub(crate) mesa: String,
}

impl Compiler {
    /// Opens the GPU that [`FAMILY_VARIABLE`] names.
    pub(crate) fn open() -> Result<Self, String> {
        let family = env::var(FAMILY_VARIABLE).map_err(|_| format!("{FAMILY_VARIABLE} is not set"))?;
        let failed = |what| move |error: vk::Result| format!("{what}: {error}");
        // SAFETY: the library is the system's Vulkan loader.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| format!("no Vulkan loader: {error}"))?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: the structures are valid for the call, and the entry outlives the instance.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(failed("no instance"))?;
        // SAFETY: the instance is alive.
        let devices = unsafe { instance.enumerate_physical_devices() }.map_err(failed("no devices"))?;
        let physical = *devices.first().ok_or_else(|| format!("Mesa has no GPU {family:?}"))?;
        let mut driver = vk::PhysicalDeviceDriverProperties::default();
        let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
        // SAFETY: the chain holds what this version of Vulkan defines, and the device is the instance's.
        unsafe { instance.get_physical_device_properties2(physical, &mut all) };
        if driver.driver_id != vk::DriverId::MESA_RADV {
            return Err(format!(
                "the first device is driven by {} and not by RADV",
                text(&driver.driver_name)
            ));
        }
        let mesa = text(&driver.driver_info);
        let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
        let extensions = [pipeline_executable_properties::NAME.as_ptr()];
        let mut statistics = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default().shader_int8(true);
        let mut v13 = vk::PhysicalDeviceVulkan13Features::default().shader_integer_dot_product(true);
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queue)
            .enabled_extension_names(&extensions)
            .push_next(&mut statistics)
            .push_next(&mut v12)
            .push_next(&mut v13);
        // SAFETY: the structures are valid for the call, and queue family 0 exists on every device.
        let device = unsafe { instance.create_device(physical, &info, None) }.map_err(failed("no device"))?;
        let properties = pipeline_executable_properties::Device::new(&instance, &device);
        Ok(Self { _entry: entry, instance, device, properties, mesa })
    }

    /// Compiles a compute pipeline.
    pub(crate) fn compile(&self, module: &Module, entry_point: &str) -> Result<Compiled, String> {
        let name = CString::new(entry_point).map_err(|error| error.to_string())?;
        let failed = |error: vk::Result| format!("{entry_point} does not compile: {error}");
        // SAFETY: every structure is valid for its call, naga has validated the SPIR-V, the layout has all
        // its bindings, and nothing is destroyed while it is used. Objects left after an error end with the
        // process.
        unsafe {
            let info = vk::ShaderModuleCreateInfo::default().code(&module.words);
            let shader = self.device.create_shader_module(&info, None).map_err(failed)?;
            let (sets, layout) = self.layout(&module.bindings).map_err(failed)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(shader)
                .name(&name);
            let capture = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info = vk::ComputePipelineCreateInfo::default().flags(capture).stage(stage).layout(layout);
            let pipelines = self
                .device
                .create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
                .map_err(|(_, error)| failed(error))?;
            let compiled = self.read(pipelines[0]).map_err(failed);
            self.device.destroy_pipeline(pipelines[0], None);
            self.device.destroy_pipeline_layout(layout, None);
            sets.iter().for_each(|set| self.device.destroy_descriptor_set_layout(*set, None));
            self.device.destroy_shader_module(shader, None);
            compiled
        }
    }

    /// # Safety
    /// None but that of Vulkan: the device is alive.
    unsafe fn layout(
        &self,
        bindings: &[Binding],
    ) -> Result<(Vec<vk::DescriptorSetLayout>, vk::PipelineLayout), vk::Result> {
        let groups = bindings.iter().map(|binding| binding.group + 1).max().unwrap_or(0);
        let mut sets = Vec::new();
        for group in 0..groups {
            let of_group = bindings.iter().filter(|binding| binding.group == group);
            let entries: Vec<_> = of_group
                .map(|binding| {
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(binding.binding)
                        .descriptor_type(if binding.uniform {
                            vk::DescriptorType::UNIFORM_BUFFER
                        } else {
                            vk::DescriptorType::STORAGE_BUFFER
                        })
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE)
                })
                .collect();
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&entries);
            // SAFETY: the structures are valid for the call.
            sets.push(unsafe { self.device.create_descriptor_set_layout(&info, None)? });
        }
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        // SAFETY: the structures are valid for the call.
        let layout = unsafe { self.device.create_pipeline_layout(&info, None)? };
        Ok((sets, layout))
    }

    /// # Safety
    /// The pipeline has been made with both flags of capturing.
    unsafe fn read(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        // A compute pipeline has one executable.
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline captures statistics.
        let mut all = unsafe { self.properties.get_pipeline_executable_statistics(&info)? };
        all.retain(|statistic| statistic.format == vk::PipelineExecutableStatisticFormatKHR::UINT64);
        let statistics = all.iter().map(|statistic| {
            // SAFETY: the format says that this member of the union is written.
            (text(&statistic.name), unsafe { statistic.value.u64 })
        });
        let statistics = statistics.collect();
        // SAFETY: the pipeline captures its representations. The first call writes their sizes, the second
        // their texts to memory of these sizes.
        let assembly = unsafe {
            let mut parts = self.properties.get_pipeline_executable_internal_representations(&info)?;
            let mut texts: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.data_size]).collect();
            for (part, text) in parts.iter_mut().zip(&mut texts) {
                part.p_data = text.as_mut_ptr().cast();
            }
            let mut count = parts.len() as u32;
            (self.properties.fp().get_pipeline_executable_internal_representations_khr)(
                self.device.handle(),
                &info,
                &mut count,
                parts.as_mut_ptr(),
            )
            .result()?;
            let found = parts.iter().zip(&texts).find(|(part, _)| text(&part.name) == "Assembly");
            found.map(|(_, bytes)| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
        };
        Ok(Compiled { statistics, assembly: assembly.unwrap_or_default() })
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // SAFETY: all that the device has made has been destroyed.
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

/// A text of Vulkan, which ends with a zero.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|c| c.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}
