//! State in 8 bits: codes and scales, on the GPU and on the CPU.

mod codes;
mod exact;
mod rounding;
mod runs;
