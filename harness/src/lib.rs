//! What the tests, benches, examples and the program of wgpu-optim share: opening a device, moving data, and
//! the copy kernel that bandwidth is compared with.

mod copy;

pub use copy::Copy;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

pub use cpu_harness::{cpu_slot, cpu_snapshot};
use cpu_harness::{decoded, joined};
use wgpu_optim::check::Snapshot;
pub use wgpu_optim::wgpu;
use wgpu_optim::{Format, Optimizer, q8};

/// The Debian and Ubuntu package that brings a software Vulkan.
pub const SOFTWARE_VULKAN: &str = "mesa-vulkan-drivers";
/// Set to any value, it lets tests that need an adapter pass without one.
pub const SKIP_VARIABLE: &str = "WGPU_OPTIM_SKIP_GPU";
/// Longer than any submission here takes, so that a lost device is an error and not a hang.
const TIMEOUT: Duration = Duration::from_secs(300);

/// An opened adapter.
#[derive(Debug)]
pub struct Gpu {
    /// Its name, driver and kind.
    pub info: wgpu::AdapterInfo,
    /// The device.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
}

/// Why there is no device.
#[derive(Debug)]
pub struct NoGpu(pub String);

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for NoGpu {}

/// The instance that the standard variables (`WGPU_BACKEND`, …) ask for.
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
            None => format!("no GPU adapter; the package {SOFTWARE_VULKAN} brings a software Vulkan"),
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

/// Opens the chosen adapter with limits that `adjust` has changed.
///
/// # Errors
/// If there is none, or it refuses.
pub fn open_with(adjust: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, NoGpu> {
    let adapter = choose(&instance())?;
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

/// The device for a test, or `None` where [`SKIP_VARIABLE`] allows to go without.
///
/// # Panics
/// Without an adapter and without the variable.
#[must_use]
pub fn test_gpu() -> Option<Gpu> {
    test_gpu_with(|_| ())
}

/// [`test_gpu`] with limits that `adjust` has changed.
///
/// # Panics
/// Without an adapter and without the variable.
#[must_use]
pub fn test_gpu_with(adjust: impl FnOnce(&mut wgpu::Limits)) -> Option<Gpu> {
    match open_with(adjust) {
        Ok(gpu) => Some(gpu),
        Err(error) if std::env::var_os(SKIP_VARIABLE).is_some() => {
            eprintln!("skipped, as {SKIP_VARIABLE} is set: {error}");
            None
        }
        Err(error) => panic!("{error}; set {SKIP_VARIABLE}=1 to skip the tests that need one"),
    }
}

impl Gpu {
    /// A zeroed storage buffer of `bytes`.
    #[must_use]
    pub fn buffer(&self, bytes: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// A storage buffer that holds `data`, padded with zeros to whole 16-byte vectors.
    #[must_use]
    pub fn upload(&self, data: &[f32]) -> wgpu::Buffer {
        let buffer = self.buffer((data.len().next_multiple_of(4).max(4) * 4) as u64);
        self.write(&buffer, 0, data);
        buffer
    }

    /// A buffer of numbers as they are stored, filled up with zeros to whole vectors.
    #[must_use]
    pub fn upload_as(&self, format: Format, values: &[f32]) -> wgpu::Buffer {
        let mut words = packed(format, values);
        words.resize(words.len().next_multiple_of(4), 0);
        self.upload(bytemuck::cast_slice(&words))
    }

    /// Writes numbers as they are stored to the start of a buffer.
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

    /// [`read`](Self::read) for whole buffers.
    #[must_use]
    pub fn download(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        self.read(buffer, 0, (buffer.size() / 4) as usize)
    }

    /// [`read`](Self::read), as bits.
    ///
    /// # Panics
    /// If the device is lost.
    #[must_use]
    pub fn read_bits(&self, buffer: &wgpu::Buffer, offset: u64, len: usize) -> Vec<u32> {
        let bytes = (len * 4) as u64;
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, Some(bytes));
        encoder.map_buffer_on_submit(&staging, wgpu::MapMode::Read, .., |result| {
            result.expect("a staging buffer can be mapped");
        });
        self.run(encoder);
        let mapped = staging.get_mapped_range(..).expect("mapped, as the submission is done");
        bytemuck::pod_collect_to_vec(&mapped)
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

    /// Waits for all that has been submitted.
    ///
    /// # Panics
    /// If the device is lost.
    pub fn wait(&self) {
        self.device
            .poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(TIMEOUT) })
            .expect("the device answers");
    }
}

/// Numbers as a buffer stores them, two to a word where they have 2 bytes.
#[must_use]
pub fn packed(format: Format, values: &[f32]) -> Vec<u32> {
    let code = |x: &f32| format.encode(*x);
    match format.bytes() {
        4 => values.iter().map(code).collect(),
        _ => values.chunks(2).map(|pair| code(&pair[0]) | pair.get(1).map_or(0, code) << 16).collect(),
    }
}

/// The codes of elements of `bytes` in words.
fn codes(words: &[u32], bytes: u64) -> Vec<u32> {
    match bytes {
        4 => words.to_vec(),
        2 => words.iter().flat_map(|word| [word & 0xffff, word >> 16]).collect(),
        _ => words.iter().flat_map(|word| word.to_le_bytes().map(u32::from)).collect(),
    }
}

/// The codes of a slot in the flat space, for each element that a tensor has; empty where it is not kept,
/// `None` if there is no such slot. Of what is stored in blocks, the bits of the numbers themselves.
///
/// # Panics
/// If the device is lost.
#[expect(clippy::mutable_key_type, reason = "wgpu's buffers hash by identity")]
#[must_use]
pub fn slot(gpu: &Gpu, optimizer: &Optimizer, slot: &str) -> Option<Vec<u32>> {
    let layout = optimizer.layout();
    // Tensors share state buffers; each is read once.
    let mut buffers = HashMap::new();
    let (mut flat, mut known) = (Vec::new(), false);
    for tensor in layout.tensors() {
        // A tensor whose rule lacks the slot has none of it.
        let Ok(ranges) = optimizer.state(slot, &tensor.name) else { continue };
        known = true;
        for range in ranges {
            flat.resize(layout.len() as usize, 0);
            let values = buffers
                .entry(range.buffer.clone())
                .or_insert_with_key(|buffer| gpu.read_bits(buffer, 0, (buffer.size() / 4) as usize));
            let to = (tensor.offset + range.start) as usize;
            let (from, len) = (range.offset as usize, range.len as usize);
            let bytes = range.element_bytes as usize;
            let first = from / 4;
            let words = &values[first..(from + len * bytes).div_ceil(4)];
            let own = codes(words, range.element_bytes);
            let own = &own[from % 4 / bytes..][..len];
            let flat = &mut flat[to..to + len];
            flat.copy_from_slice(own);
            if let Some(scales) = range.scales {
                // The part's first block begins with its first word.
                for (i, x) in flat.iter_mut().enumerate() {
                    let scale = values[scales as usize / 4 + (from % 4 + i) / q8::BLOCK];
                    *x = q8::decode(*x as u8, scale).to_bits();
                }
            }
        }
    }
    known.then_some(flat)
}

/// The codes of the caller's parameters, flat from byte `offset` of their buffer on, a multiple of 4.
///
/// # Panics
/// If the device is lost.
#[must_use]
pub fn param_codes(gpu: &Gpu, optimizer: &Optimizer, params: &wgpu::Buffer, offset: u64) -> Vec<u32> {
    let (len, bytes) = (optimizer.layout().len(), optimizer.options().params.bytes());
    let words = gpu.read_bits(params, offset, (len * bytes).div_ceil(4) as usize);
    let mut codes = codes(&words, bytes);
    codes.truncate(len as usize);
    codes
}

/// Reads parameters (flat, at byte `offset` of `params`) and state of an optimizer, decoded; parameters with
/// all the digits that are kept of them.
///
/// # Panics
/// If the device is lost.
#[must_use]
pub fn snapshot(gpu: &Gpu, optimizer: &Optimizer, params: &wgpu::Buffer, offset: u64) -> Snapshot {
    let options = optimizer.options();
    let state = optimizer.layout().slot_names().into_iter().map(|name| {
        let codes = slot(gpu, optimizer, name).expect("the rule's own names");
        decoded(optimizer.layout(), options, &codes)
    });
    let state = state.collect();
    let stored = param_codes(gpu, optimizer, params, offset);
    let mut params: Vec<f32> = stored.iter().map(|&code| options.params.decode(code)).collect();
    let (master, remainder) = (slot(gpu, optimizer, "master"), slot(gpu, optimizer, "remainder"));
    // What lies between tensors has nothing beside it.
    for i in optimizer.layout().tensors().iter().flat_map(|tensor| tensor.range()) {
        if let Some(master) = &master {
            params[i] = f32::from_bits(master[i]);
        } else if let Some(remainder) = &remainder {
            params[i] = joined(stored[i], remainder[i]);
        }
    }
    Snapshot { params, state }
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

/// A test's name as the test's program knows it, so that none can be misspelt.
#[must_use]
pub fn name<F: Fn()>(_: &F) -> &'static str {
    let path = std::any::type_name::<F>();
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// The test's program in another process, which runs this test alone; the environment tells the test which of
/// the two it is in.
///
/// # Panics
/// If the program is not known.
#[must_use]
pub fn again<F: Fn()>(test: &F) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().expect("the program's path"));
    command.args([name(test), "--exact", "--nocapture"]);
    command
}
