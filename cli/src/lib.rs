//! The parts of the program `optim`: reading recorded training runs, replaying and judging them, checking the
//! devices against the reference, timing them, and showing learning-rate schedules. The binary only parses
//! arguments, calls these and prints.

pub mod bar;
pub mod bench;
pub mod bundled;
pub mod device;
pub mod devices;
mod engine;
pub mod inspect;
pub mod kernel;
pub mod number;
pub mod presets;
pub mod race;
pub mod replay;
pub mod rules;
pub mod schedules;
pub mod trajectory;
pub mod verify;
