//! The CPU engine: the same bits on any number of threads. Neither a GPU nor threads are needed.

mod bits;
mod steps;
mod tensors;
