//! Which device does the work.

use harness::{Gpu, NoGpu, SOFTWARE_VULKAN, wgpu};
use serde::Serialize;

/// The device that the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The best adapter, or the CPU where there is none.
    #[default]
    Auto,
    /// The best adapter; an error where there is none.
    Gpu,
    /// The CPU engine in f32.
    Cpu,
}

/// An opened device.
#[derive(Debug)]
pub enum Device {
    /// An adapter.
    Gpu(Box<Gpu>),
    /// The CPU engine in f32.
    Cpu,
}

impl Device {
    /// Opens a device. Where it is the CPU for want of an adapter, the second value is a line that says so.
    ///
    /// # Errors
    /// [`NoGpu`] if an adapter was asked for by name and there is none.
    pub fn open(choice: Choice) -> Result<(Self, Option<String>), NoGpu> {
        if choice == Choice::Cpu {
            return Ok((Self::Cpu, None));
        }
        match harness::open() {
            Ok(gpu) => Ok((Self::Gpu(Box::new(gpu)), None)),
            Err(error) if choice == Choice::Gpu => Err(error),
            Err(error) => Ok((Self::Cpu, Some(fallback(&error)))),
        }
    }

    /// The fields that every line of JSON has.
    #[must_use]
    pub fn label(&self) -> Label {
        match self {
            Self::Gpu(gpu) => Label { device: "gpu", adapter: Some(gpu.info.name.clone()) },
            Self::Cpu => Label { device: "cpu", adapter: None },
        }
    }
}

/// A device's kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Label {
    /// `gpu` or `cpu`.
    pub device: &'static str,
    /// The adapter's name, none on the CPU.
    pub adapter: Option<String>,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.adapter.as_deref().unwrap_or("CPU"))
    }
}

/// The line that says why the work is done on the CPU, and how to change that.
#[must_use]
pub fn fallback(error: &NoGpu) -> String {
    let reason = error.to_string();
    let hint = if reason.contains(SOFTWARE_VULKAN) {
        String::new()
    } else {
        format!("; the package {SOFTWARE_VULKAN} brings a software Vulkan")
    };
    format!("running on the CPU: {reason}{hint}")
}

/// Why a device cannot do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Memory, most likely.
    #[error("the device refuses: {0}")]
    Refused(String),
    /// The library refuses.
    #[error(transparent)]
    Library(wgpu_optim::Error),
}

impl<E: Into<wgpu_optim::Error>> From<E> for Error {
    /// The error of any stage of the library.
    fn from(error: E) -> Self {
        Self::Library(error.into())
    }
}

/// Refuses elements that no buffer holds, before time is spent on making them.
///
/// # Errors
/// [`Error::Refused`].
pub fn fits(gpu: &Gpu, elements: u64) -> Result<(), Error> {
    let (bytes, bound) = (elements.saturating_mul(4), gpu.device.limits().max_buffer_size);
    if bytes <= bound {
        return Ok(());
    }
    Err(Error::Refused(format!("{elements} elements = {bytes} bytes, max_buffer_size is {bound}")))
}

/// Runs `make` and returns the device's objection, mostly to memory, as an error. Without it wgpu panics.
///
/// # Errors
/// [`Error::Refused`].
pub fn guarded<T>(gpu: &Gpu, make: impl FnOnce() -> T) -> Result<T, Error> {
    let memory = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let made = make();
    // The inner scope goes first, and both go whatever they hold.
    let errors = [pollster::block_on(validation.pop()), pollster::block_on(memory.pop())];
    match errors.into_iter().flatten().next() {
        None => Ok(made),
        Some(error) => Err(Error::Refused(error.to_string())),
    }
}
