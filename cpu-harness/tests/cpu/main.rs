//! The CPU engine: the same bits whoever does the work. Neither a GPU nor threads are needed.

mod bits;
mod steps;
mod tensors;
