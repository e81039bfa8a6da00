//! The kinds of device that kernels are written for: GPUs and software Vulkan. Everything that only one of
//! them needs is here, with its measurement.

/// The kind of device that kernels are composed for. Results have the same bits, except sums of squares,
/// which are added up in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// A GPU, which hides the latency of memory if a thread loads everything at once.
    Gpu,
    /// Software Vulkan, which runs eight threads through the kernel before the next eight.
    Software,
}

impl Target {
    /// The target of a device.
    #[must_use]
    pub fn of(device: &wgpu::Device) -> Self {
        match device.adapter_info().device_type {
            wgpu::DeviceType::Cpu => Self::Software,
            _ => Self::Gpu,
        }
    }

    /// All targets.
    pub const ALL: [Self; 2] = [Self::Gpu, Self::Software];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Software => "software",
        }
    }

    /// Whether a thread loads all of its values before the arithmetic.
    ///
    /// AMD's compiler cannot move a load past a store: with loads at the rule's reads, AdamW makes three
    /// trips to memory in a row, Adan five. Software Vulkan takes 1.25 times as long with all loads first,
    /// because all values are live at once.
    pub(super) fn loads_first(self) -> bool {
        self == Self::Gpu
    }

    /// Up to this many groups, a kernel reads the scalars of all of them from constant addresses and selects
    /// one.
    ///
    /// A computed address is a gather on software Vulkan, which took 10 % of an AdamW step. A GPU reads
    /// uniform data at any address that is the same for the whole wave.
    pub(super) fn selected_groups(self) -> u32 {
        match self {
            Self::Gpu => 1,
            Self::Software => 4,
        }
    }

    /// The number of threads that read side by side in a round of a reduction.
    ///
    /// On a GPU it is all threads of a workgroup. Software Vulkan runs eight threads through all rounds
    /// before the next eight, so their rounds are adjacent: LAMB took 1.7 times as long with rounds 4 KiB
    /// apart.
    pub(super) fn stream(self, workgroup_size: u32) -> u32 {
        match self {
            Self::Gpu => workgroup_size,
            Self::Software => 8,
        }
    }
}
