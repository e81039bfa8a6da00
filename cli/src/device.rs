//! The choice and opening of a device.

use harness::{Gpu, NoGpu, SOFTWARE_VULKAN, wgpu};
use serde::Serialize;

/// The device that the user requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The best adapter, or the CPU without one.
    #[default]
    Auto,
    /// The best adapter; an error without one.
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
    /// Opens a device. If it is the CPU for want of an adapter, the second value is a line that says so.
    ///
    /// # Errors
    /// [`NoGpu`] if the user asked for an adapter and there is none.
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

/// The line with the reason for running on the CPU, and advice to change that.
#[must_use]
pub fn fallback(error: &NoGpu) -> String {
    let reason = error.to_string();
    let hint = if reason.contains(SOFTWARE_VULKAN) {
        String::new()
    } else {
        format!("; the package {SOFTWARE_VULKAN} has a software Vulkan")
    };
    format!("running on the CPU: {reason}{hint}")
}

/// The reason that a device cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device refuses, most likely for memory.
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

/// Refuses more elements than a buffer holds, before any work.
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

/// Runs `make` and returns the device's error, mostly about memory. Without this wgpu panics.
///
/// # Errors
/// [`Error::Refused`].
pub fn guarded<T>(gpu: &Gpu, make: impl FnOnce() -> T) -> Result<T, Error> {
    let memory = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let made = make();
    // The inner scope is popped first; both are popped with any content.
    let errors = [pollster::block_on(validation.pop()), pollster::block_on(memory.pop())];
    match errors.into_iter().flatten().next() {
        None => Ok(made),
        Some(error) => Err(Error::Refused(error.to_string())),
    }
}
