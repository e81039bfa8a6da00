//! Errors: one enum per stage, and one enum over all stages.

mod bind;
mod change;
#[cfg(feature = "checkpoint")]
pub(crate) mod checkpoint;
mod device;
mod layout;
mod number;
mod offload;
mod options;
mod rule;
mod schedule;
mod state;
mod step;

pub use bind::BindError;
pub use change::ChangeError;
pub use device::DeviceError;
pub use layout::LayoutError;
#[cfg(feature = "checkpoint")]
pub(crate) use number::with_short_numbers;
pub(crate) use number::{Count, Number};
pub use offload::OffloadError;
pub use options::OptionsError;
pub use rule::RuleError;
pub use schedule::ScheduleError;
pub use state::{StateError, StateMismatch};
pub use step::StepError;

/// Any error of this crate, by the stage that refused its input.
///
/// Each function returns the error of its own stage. All of them convert to this one, so a function that
/// goes through several stages returns it with `?`:
///
/// ```
/// use wgpu_optim::{AdamW, BindError, Error, Group, Layout, StepError, cpu, schedule};
/// fn train() -> Result<(), Error> {
///     let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [3])])?;
///     let mut optimizer = cpu::Optimizer::new(layout)?;
///     let lr = schedule::cosine(1e-3, 1e-4, 100);
///     optimizer.step(cpu::Tensors::flat(&mut [0.0; 3], &[1.0; 2]), lr.at(0)?)?;
///     Ok(())
/// }
/// let short = BindError::TooShort { what: "gradients", found: 2, bound: 3 };
/// assert_eq!(train(), Err(Error::Step(StepError::Bind(short))));
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The error of a rule or its hyperparameters.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The error of a schedule or a recipe.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The error of a layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The error of options, or of the creation of an optimizer.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The error of the caller's buffers and slices.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The error of a step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The error of a change between steps.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The error of state that is read, written or taken over.
    #[error(transparent)]
    State(#[from] StateError),
    /// The error of a call of an offloaded optimizer.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The error of a checkpoint.
    #[cfg(feature = "checkpoint")]
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The error of a device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Host memory that cannot be allocated. Each stage has its own variant for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutOfMemory {
    pub(crate) bytes: u64,
}
