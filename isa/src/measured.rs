//! Statistics of a compiled kernel.

use crate::assembly::trips;
use crate::families::Family;
use crate::kernels::Kernel;
use crate::radv::Compiled;
use serde::{Deserialize, Serialize};

/// The rounds of a loop in the compiler's estimates.
const LOOP_ROUNDS: f64 = 8.0;

/// A kernel on a family of GPUs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Measured {
    pub(crate) family: String,
    /// The rule, or `-` for a kernel of all rules.
    pub(crate) rule: String,
    pub(crate) variant: String,
    /// Trips to memory that a thread makes one after another: see [`trips`].
    pub(crate) trips: u32,
    /// The compiler's estimate of a wave's cycles from start to end.
    pub(crate) latency: u64,
    /// The compiler's estimate of the cycles that the busiest unit of a SIMD takes for 64 threads.
    pub(crate) inverse_throughput: u64,
    pub(crate) vgprs: u64,
    /// Waves that a SIMD holds at once.
    pub(crate) waves: u64,
    /// Registers that are kept in memory.
    pub(crate) spills: u64,
    /// Bytes of a wave's scratch memory.
    pub(crate) scratch: u64,
    pub(crate) instructions: u64,
    /// Cycles of a compute unit for a wave's arithmetic.
    pub(crate) arithmetic_cycles: f64,
    /// Cycles of the card's memory for a wave's reads and writes; 0 for a kernel that does not visit
    /// elements.
    pub(crate) memory_cycles: f64,
}

impl Measured {
    pub(crate) fn new(family: &Family, kernel: &Kernel, compiled: &Compiled) -> Result<Self, String> {
        let of = |name: &str| {
            let found = compiled.statistics.get(name).copied();
            found.ok_or_else(|| format!("the compiler says nothing of {name:?}"))
        };
        if compiled.assembly.is_empty() {
            return Err("the driver shows no assembly".into());
        }
        // The number of rounds of a loop in the estimate of the arithmetic.
        let vectors = if kernel.in_rounds() { LOOP_ROUNDS } else { 1.0 };
        let inverse_throughput = of("Inverse Throughput")?;
        Ok(Self {
            family: family.name.into(),
            rule: kernel.rule.clone(),
            variant: kernel.variant.clone(),
            trips: trips(&compiled.assembly),
            latency: of("Latency")?,
            inverse_throughput,
            vgprs: of("VGPRs")?,
            waves: of("Subgroups per SIMD")?,
            spills: of("Spilled SGPRs")? + of("Spilled VGPRs")?,
            scratch: of("Scratch size")?,
            instructions: of("Instructions")?,
            arithmetic_cycles: family.arithmetic_cycles(inverse_throughput),
            memory_cycles: family.memory_cycles(kernel.bytes_per_element, vectors),
        })
    }

    /// Cycles of arithmetic divided by cycles of memory. Below 1, memory decides the kernel's time.
    pub(crate) fn share(&self) -> Option<f64> {
        (self.memory_cycles > 0.0).then(|| self.arithmetic_cycles / self.memory_cycles)
    }

    /// The kernel's name in messages.
    pub(crate) fn name(&self) -> String {
        format!("{}, {}, {}", self.family, self.rule, self.variant)
    }
}
