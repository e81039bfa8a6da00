//! What kernels are shaped for: real GPUs, or software Vulkan. Everything that one of them alone asks for
//! stands here, with what was measured.

/// The kind of device that kernels are composed for. Results are the same bits, but for sums of squares,
/// which are added up in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// A GPU, which hides the latency of memory if a thread asks for everything at once.
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

    /// The targets.
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
    /// AMD's compiler cannot move a load past a store: where the rule's reads load, AdamW goes to memory
    /// three times in a row, Adan five times. Software Vulkan takes 1.25 times as long with all loads first,
    /// because all values are live at once.
    pub(super) fn loads_first(self) -> bool {
        self == Self::Gpu
    }

    /// Up to this many groups, a kernel reads the scalars of all of them from constant addresses and selects
    /// one.
    ///
    /// A computed address is a gather on software Vulkan, which took 10 % of an AdamW step. A GPU reads
    /// uniform data at any address that the wave has in common.
    pub(super) fn selected_groups(self) -> u32 {
        match self {
            Self::Gpu => 1,
            Self::Software => 4,
        }
    }

    /// Threads that read side by side in a round of a reduction.
    ///
    /// On a GPU all threads of a workgroup do. On software Vulkan eight threads run through all rounds before
    /// the next eight, so their rounds follow each other: LAMB took 1.7 times as long with rounds 4 KiB
    /// apart.
    pub(super) fn stream(self, workgroup_size: u32) -> u32 {
        match self {
            Self::Gpu => workgroup_size,
            Self::Software => 8,
        }
    }
}
