//! What the program `optim` is made of: reading recorded training runs, replaying and judging them, checking the devices against the
//! reference, and timing them. The binary only parses arguments and calls these.

pub mod bar;
pub mod bundled;
pub mod device;
pub mod replay;
pub mod rules;
pub mod trajectory;
