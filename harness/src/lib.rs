//! Shared code of the tests, benches, examples and program of wgpu-optim: opens a device, moves data, runs on
//! a GPU, and has the copy kernel for comparison of bandwidths.

mod copy;
mod run;
mod state;

pub use copy::Copy;
pub use run::{GpuRun, Places};
pub use state::{param_codes, slot, snapshot};
use std::fmt;
use std::time::Duration;

pub use cpu_harness::{CpuRun, Stored, cpu_slot, cpu_snapshot};
use wgpu_optim::Format;
pub use wgpu_optim::wgpu;

/// The Debian and Ubuntu package with a software Vulkan.
pub const SOFTWARE_VULKAN: &str = "mesa-vulkan-drivers";
/// The variable that, set to any value, lets tests that need an adapter pass without one.
pub const SKIP_VARIABLE: &str = "WGPU_OPTIM_SKIP_GPU";
/// Time limit of a submission, so that a lost device is an error and not a hang.
const TIMEOUT: Duration = Duration::from_secs(300);

/// An opened adapter.
#[derive(Debug)]
pub struct Gpu {
    /// The adapter's name, driver and kind.
    pub info: wgpu::AdapterInfo,
    /// The device.
    pub device: wgpu::Device,
    /// The device's queue.
    pub queue: wgpu::Queue,
}

/// The reason that there is no device.
#[derive(Debug)]
pub struct NoGpu(pub String);

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for NoGpu {}

/// The instance for the standard variables (`WGPU_BACKEND`, …).
#[must_use]
pub fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// Adapters that can compute, best first: real GPUs before software.
#[must_use]
pub fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.retain(|a| {
        let flags = a.get_downlevel_capabilities().flags;
        flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    adapters.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

/// The adapter that `WGPU_ADAPTER_NAME` names (a part of its name), or the best one.
///
/// # Errors
/// If there is none.
pub fn choose(instance: &wgpu::Instance) -> Result<wgpu::Adapter, NoGpu> {
    let adapters = adapters(instance);
    let wanted = std::env::var("WGPU_ADAPTER_NAME").ok();
    let found = adapters.into_iter().find(|a| {
        wanted.as_ref().is_none_or(|w| a.get_info().name.to_lowercase().contains(&w.to_lowercase()))
    });
    found.ok_or_else(|| {
        NoGpu(match wanted {
            Some(name) => format!("no adapter's name contains WGPU_ADAPTER_NAME={name:?}"),
            None => format!("no GPU adapter; the package {SOFTWARE_VULKAN} has a software Vulkan"),
        })
    })
}

/// Opens the chosen adapter with all of its limits.
///
/// # Errors
/// If there is none, or it refuses.
pub fn open() -> Result<Gpu, NoGpu> {
    open_with(|_| ())
}

/// Opens the chosen adapter with limits changed by `adjust`.
///
/// # Errors
/// If there is none, or it refuses.
pub fn open_with(adjust: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, NoGpu> {
    open_on(&choose(&instance())?, adjust)
}

/// Opens an adapter with limits changed by `adjust`.
///
/// # Errors
/// If it refuses.
pub fn open_on(adapter: &wgpu::Adapter, adjust: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, NoGpu> {
    let mut required_limits = adapter.limits();
    adjust(&mut required_limits);
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_limits,
        memory_hints: wgpu::MemoryHints::Performance,
        ..Default::default()
    }))
    .map_err(|error| NoGpu(error.to_string()))?;
    Ok(Gpu { info: adapter.get_info(), device, queue })
}

/// The device for a test, or `None` if [`SKIP_VARIABLE`] allows a run without one.
///
/// # Panics
/// Without an adapter and without the variable.
#[must_use]
pub fn test_gpu() -> Option<Gpu> {
    test_gpu_with(|_| ())
}

/// The device of [`test_gpu`], with limits changed by `adjust`.
///
/// # Panics
/// Without an adapter and without the variable.
#[must_use]
pub fn test_gpu_with(adjust: impl FnOnce(&mut wgpu::Limits)) -> Option<Gpu> {
    or_skipped(open_with(adjust))
}

/// The adapter for a test that opens several devices, or `None` if [`SKIP_VARIABLE`] allows a run without
/// one.
///
/// # Panics
/// Without an adapter and without the variable.
#[must_use]
pub fn test_adapter() -> Option<wgpu::Adapter> {
    or_skipped(choose(&instance()))
}

fn or_skipped<T>(opened: Result<T, NoGpu>) -> Option<T> {
    match opened {
        Ok(opened) => Some(opened),
        Err(error) if std::env::var_os(SKIP_VARIABLE).is_some() => {
            eprintln!("skipped, as {SKIP_VARIABLE} is set: {error}");
            None
        }
        Err(error) => panic!("{error}; set {SKIP_VARIABLE}=1 to skip the tests that need one"),
    }
}

impl Gpu {
    /// Makes a zeroed storage buffer of `bytes`.
    #[must_use]
    pub fn buffer(&self, bytes: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Makes a storage buffer with `data`, padded with zeros to whole 16-byte vectors.
    #[must_use]
    pub fn upload(&self, data: &[f32]) -> wgpu::Buffer {
        let buffer = self.buffer((data.len().next_multiple_of(4).max(4) * 4) as u64);
        self.write(&buffer, 0, data);
        buffer
    }

    /// Makes a buffer of numbers in a format, padded with zeros to whole vectors.
    #[must_use]
    pub fn upload_as(&self, format: Format, values: &[f32]) -> wgpu::Buffer {
        let mut words = packed(format, values);
        words.resize(words.len().next_multiple_of(4), 0);
        self.upload(bytemuck::cast_slice(&words))
    }

    /// Writes numbers in a format to the start of a buffer.
    pub fn write_as(&self, format: Format, buffer: &wgpu::Buffer, values: &[f32]) {
        self.write(buffer, 0, bytemuck::cast_slice(&packed(format, values)));
    }

    /// Writes `data` at byte `offset`.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, data: &[f32]) {
        // In parts, so that wgpu's staging never doubles a large buffer.
        const PART: usize = 4 << 20;
        for (i, part) in data.chunks(PART).enumerate() {
            self.queue.write_buffer(buffer, offset + (i * PART * 4) as u64, bytemuck::cast_slice(part));
            if data.len() > PART {
                self.queue.submit([]);
            }
        }
    }

    /// Reads `len` elements from byte `offset` on; waits for the device.
    ///
    /// # Panics
    /// If the device is lost.
    #[must_use]
    pub fn read(&self, buffer: &wgpu::Buffer, offset: u64, len: usize) -> Vec<f32> {
        bytemuck::cast_vec(self.read_bits(buffer, offset, len))
    }

    /// Reads a whole buffer by [`read`](Self::read).
    #[must_use]
    pub fn download(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        self.read(buffer, 0, (buffer.size() / 4) as usize)
    }

    /// Reads the bits of elements, as [`read`](Self::read).
    ///
    /// # Panics
    /// If the device is lost.
    #[must_use]
    pub fn read_bits(&self, buffer: &wgpu::Buffer, offset: u64, len: usize) -> Vec<u32> {
        let bytes = (len * 4) as u64;
        let copy = |encoder: &mut wgpu::CommandEncoder, staging: &wgpu::Buffer| {
            encoder.copy_buffer_to_buffer(buffer, offset, staging, 0, Some(bytes));
        };
        self.read_copies(bytes, copy).1
    }

    /// The words of a buffer of `bytes` that `copy` records copies into.
    fn read_copies<T>(
        &self,
        bytes: u64,
        copy: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::Buffer) -> T,
    ) -> (T, Vec<u32>) {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.encoder();
        let copied = copy(&mut encoder, &staging);
        encoder.map_buffer_on_submit(&staging, wgpu::MapMode::Read, .., |result| {
            result.expect("a staging buffer can be mapped");
        });
        self.run(encoder);
        let mapped = staging.get_mapped_range(..).expect("mapped, as the submission is done");
        (copied, bytemuck::pod_collect_to_vec(&mapped))
    }

    /// A new encoder.
    #[must_use]
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits and waits.
    ///
    /// # Panics
    /// If the device is lost.
    pub fn run(&self, encoder: wgpu::CommandEncoder) {
        self.queue.submit([encoder.finish()]);
        self.wait();
    }

    /// Waits for all submitted work.
    ///
    /// # Panics
    /// If the device is lost.
    pub fn wait(&self) {
        self.device
            .poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(TIMEOUT) })
            .expect("the device answers");
    }
}

/// Numbers in stored form; numbers of 2 bytes lie two to a word.
#[must_use]
pub fn packed(format: Format, values: &[f32]) -> Vec<u32> {
    let code = |x: &f32| format.encode(*x);
    match format.bytes() {
        4 => values.iter().map(code).collect(),
        _ => values.chunks(2).map(|pair| code(&pair[0]) | pair.get(1).map_or(0, code) << 16).collect(),
    }
}

/// The median of `samples`.
///
/// # Panics
/// If there are none.
#[must_use]
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let (low, high) = (samples[(samples.len() - 1) / 2], samples[samples.len() / 2]);
    f64::midpoint(low, high)
}

/// A test's name in the test's program, which cannot be misspelt.
#[must_use]
pub fn name<F: Fn()>(_: &F) -> &'static str {
    let path = std::any::type_name::<F>();
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// The test's program in another process, which runs only this test. The environment tells the test its
/// process.
///
/// # Panics
/// If the program is not known.
#[must_use]
pub fn again<F: Fn()>(test: &F) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().expect("the program's path"));
    command.args([name(test), "--exact", "--nocapture"]);
    command
}
