//! The program `optim`.
fn main() {}
