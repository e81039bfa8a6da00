//! Everything that can be refused, by name, value and bound.

mod offload;
mod state;

pub use offload::OffloadError;
pub use state::StateMismatch;
use state::list;

/// Why a layout, a configuration, a binding or a step was refused. Nothing has been recorded and no state has
/// changed when one of these is returned. A step of `offload::Offload::advance` goes on where it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A hyperparameter outside its range, or not finite.
    #[error("{rule}: {field} = {value}, must be {bound}")]
    Hyperparameter {
        /// The rule's name.
        rule: &'static str,
        /// The field's name.
        field: &'static str,
        /// What it was.
        value: f64,
        /// What it has to be.
        bound: &'static str,
    },
    /// Hyperparameters that exclude each other.
    #[error("{rule}: {conflict}")]
    Conflict {
        /// The rule's name.
        rule: &'static str,
        /// What excludes what.
        conflict: &'static str,
    },
    /// A rule whose name is not among the built-in ones.
    #[error("there is no rule {name:?}; known rules are {known}")]
    UnknownRule {
        /// The name asked for.
        name: String,
        /// The names of all built-in rules.
        known: String,
    },
    /// A rule without a CPU implementation, on the CPU.
    #[error("{rule}: the rule has no CPU implementation: implement `CpuRule`")]
    NoCpuRule {
        /// The rule's name.
        rule: &'static str,
    },
    /// A rule in the place of another rule.
    #[error("group {group:?}: the new rule is {found}, must be {expected} with other hyperparameters")]
    OtherRule {
        /// The group's name.
        group: String,
        /// The name of the rule handed over.
        found: &'static str,
        /// The name of the group's rule.
        expected: &'static str,
    },
    /// Hyperparameters that need a state slot for which there is no memory.
    #[error("group {group:?}: the hyperparameters need state slot {slot}, which the optimizer does not keep")]
    SlotNotKept {
        /// The group's name.
        group: String,
        /// The slot's name.
        slot: &'static str,
    },
    /// An option, or a step's gradient scale, outside its range or not finite.
    #[error("{field} = {value}, must be {bound}")]
    Options {
        /// The field's name.
        field: &'static str,
        /// What it was.
        value: f64,
        /// What it has to be.
        bound: &'static str,
    },
    /// A clip of another kind than the optimizer's.
    #[error("the new clip is {found}, must be {expected} with another bound")]
    OtherClip {
        /// The kind handed over.
        found: &'static str,
        /// The optimizer's kind, or `"none"`.
        expected: &'static str,
    },
    /// State that an optimizer for another layout cannot take over: everything that differs.
    #[error("the state does not fit: {}", list(.0))]
    State(Vec<StateMismatch>),
    /// A storage format that does not go there.
    #[error("{field} are {format}, must be {bound}")]
    Format {
        /// The field's name.
        field: &'static str,
        /// What it was.
        format: &'static str,
        /// What it has to be.
        bound: &'static str,
    },
    /// A tensor of 2-byte elements in a buffer of its own, of which words would be shared with what lies
    /// before it in the layout.
    #[error("{what} start at element {offset} of the layout, must be even where elements have 2 bytes")]
    OddElement {
        /// Which tensor.
        what: String,
        /// Where it starts in the flat space.
        offset: u64,
    },
    /// Too many steps that may have been skipped have been recorded since the device last reported how many
    /// were.
    #[error(
        "{steps} steps recorded without a report from the device, must be at most {bound}: submit and poll"
    )]
    Unreported {
        /// Steps since the last report.
        steps: usize,
        /// The most that there may be.
        bound: usize,
    },
    /// A momentum that changes while a step that may have been skipped is unreported, of a rule whose scalars
    /// depend on the momenta of the steps that were taken.
    #[error("{rule}: the momentum changes while {steps} steps are unreported: wait for their reports")]
    UncertainMomentum {
        /// The rule's name.
        rule: &'static str,
        /// Steps since the last report.
        steps: usize,
    },
    /// A group that was frozen or thawed while steps are unreported that may have been skipped.
    #[error(
        "group {group:?} was frozen or thawed while {steps} steps are unreported that may have been skipped; \
         wait for their reports"
    )]
    UncertainAge {
        /// The group's name.
        group: String,
        /// Steps since the last report.
        steps: usize,
    },
    /// A learning rate or momentum outside its range, or not finite.
    #[error("{field} = {value} for group {group:?}, must be {bound}")]
    Step {
        /// Which argument.
        field: &'static str,
        /// The group it was for.
        group: String,
        /// What it was.
        value: f64,
        /// What it has to be.
        bound: &'static str,
    },
    /// A schedule's field or value outside its range, or not finite.
    #[error("{schedule}: {field} = {value}, must be {bound}")]
    Schedule {
        /// The kind's name.
        schedule: &'static str,
        /// The field's name, or `"value"`.
        field: &'static str,
        /// What it was.
        value: f64,
        /// What it has to be.
        bound: &'static str,
    },
    /// A recipe's argument outside its range, or not finite.
    #[error("{recipe}: {argument} = {value}, must be {bound}")]
    Recipe {
        /// The name of the recipe's function.
        recipe: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The value of the argument.
        value: f64,
        /// The range of the argument.
        bound: &'static str,
    },
    /// A step that a schedule does not have.
    #[error("{schedule}: step {step}, must be at most {bound}")]
    PastEnd {
        /// The kind's name.
        schedule: &'static str,
        /// The step that was asked for, counted from 0.
        step: u64,
        /// The last one that there is.
        bound: u64,
    },
    /// A group's schedule that was refused.
    #[error("lr_factor of group {group:?}: {reason}")]
    Factor {
        /// The group's name.
        group: String,
        /// [`Error::Schedule`] or [`Error::PastEnd`].
        reason: Box<Error>,
    },
    /// A step scalar that f32 cannot hold.
    #[error("{rule}: scalar {scalar} = {value} of group {group:?} overflows f32")]
    ScalarOverflow {
        /// The rule's name.
        rule: &'static str,
        /// The scalar's name in the shader.
        scalar: &'static str,
        /// The group it was for.
        group: String,
        /// Its value in f64.
        value: f64,
    },
    /// A layout without a single tensor.
    #[error("the layout has no tensors")]
    EmptyLayout,
    /// A group without a single tensor.
    #[error("group {group:?} has no tensors")]
    EmptyGroup {
        /// The group's name.
        group: String,
    },
    /// A tensor with a dimension of zero.
    #[error("tensor {tensor:?} of shape {shape:?} has no elements")]
    EmptyTensor {
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Two groups, or two tensors, of one name.
    #[error("{what} {name:?} is declared twice")]
    Duplicate {
        /// `"group"` or `"tensor"`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two tensors that share elements of the flat space.
    #[error(
        "tensors {first:?} and {second:?} overlap: {first:?} ends at {end}, {second:?} starts at {start}"
    )]
    TensorsOverlap {
        /// The tensor that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
        /// Where the first one ends, in elements.
        end: u64,
        /// Where the second one starts, in elements.
        start: u64,
    },
    /// A shape or offset beyond what 64-bit byte addresses reach.
    #[error("tensor {tensor:?}: {field} = {value} elements, must be at most {bound}")]
    TooLarge {
        /// The tensor's name.
        tensor: String,
        /// Which quantity.
        field: &'static str,
        /// What it was, saturated.
        value: u64,
        /// The largest that fits.
        bound: u64,
    },
    /// A name that the layout does not have.
    #[error("the layout has no {what} {name:?}")]
    Unknown {
        /// `"group"`, `"tensor"` or `"slot"`.
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// More groups than one uniform binding holds.
    #[error("{groups} groups, must be at most {bound} for these rules on this device")]
    TooManyGroups {
        /// How many there are.
        groups: usize,
        /// How many fit.
        bound: usize,
    },
    /// More tensors than a layer-wise rule can tell apart.
    #[error("{tensors} tensors, must be at most {bound} for rule {rule} on this device")]
    TooManyTensors {
        /// The rule's name.
        rule: &'static str,
        /// How many there are.
        tensors: usize,
        /// How many there may be.
        bound: usize,
    },
    /// A number of tensors, buffers or elements that is not the layout's.
    #[error("{what}: {found}, the layout has {expected}")]
    Mismatch {
        /// What was counted.
        what: &'static str,
        /// What the caller handed over.
        found: u64,
        /// What the layout has.
        expected: u64,
    },
    /// A slice of another length than its tensor's.
    #[error("{what}: {found} elements, must be {expected}")]
    Length {
        /// Which slice.
        what: String,
        /// Its length.
        found: u64,
        /// The tensor's.
        expected: u64,
    },
    /// What would have to be written, and was handed over to be read only.
    #[error("{what} are a shared slice, must be an exclusive one (`&mut`)")]
    ReadOnly {
        /// What it is.
        what: &'static str,
    },
    /// More state slots than the CPU engine brings into its cache.
    #[error("{rule}: {slots} state slots, must be at most {bound} on the CPU")]
    TooManySlots {
        /// The rule's name.
        rule: &'static str,
        /// How many it has.
        slots: usize,
        /// How many there may be.
        bound: usize,
    },
    /// A device limit below what the kernels need.
    #[error("device limit {limit} = {value}, must be at least {bound}")]
    DeviceLimit {
        /// The name in `wgpu::Limits`.
        limit: &'static str,
        /// The device's value.
        value: u64,
        /// What is needed.
        bound: u64,
    },
    /// A step over offloaded state out of its order.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The host has too little memory.
    #[error("no memory for {bytes} bytes of optimizer state")]
    Memory {
        /// What was asked for.
        bytes: u64,
    },
    /// A tensor that no buffer of the device can hold.
    #[error("tensor {tensor:?} takes {bytes} bytes, a buffer of this device holds at most {bound}")]
    TensorTooLarge {
        /// The tensor's name.
        tensor: String,
        /// Its size.
        bytes: u64,
        /// `max_buffer_size` of the device.
        bound: u64,
    },
    /// The device could not allocate a buffer of ours, or could not build a kernel.
    #[error("the device refused {what}: {reason}")]
    Device {
        /// What was being made.
        what: String,
        /// What the device said.
        reason: String,
    },
    /// A buffer of the caller's without a usage that the kernels need.
    #[error("{what}: buffer lacks usage {usage}")]
    MissingUsage {
        /// Which buffer.
        what: String,
        /// The missing usage.
        usage: &'static str,
    },
    /// A byte offset that does not fall on an element.
    #[error("{what}: offset {offset} bytes, must be a multiple of {bound}")]
    Misaligned {
        /// Which buffer.
        what: String,
        /// The offset in bytes.
        offset: u64,
        /// The alignment in bytes.
        bound: u64,
    },
    /// A tensor or a flat range that its buffer is too short for.
    #[error("{what}: needs bytes {start}..{end}, the buffer has {size}")]
    OutOfBounds {
        /// Which buffer.
        what: String,
        /// First byte needed.
        start: u64,
        /// One past the last byte needed.
        end: u64,
        /// The buffer's size.
        size: u64,
    },
    /// Two ranges of one buffer that share bytes. Bindings start at multiples of 256 bytes, so parameters and
    /// gradients of one buffer have to lie in blocks of their own.
    #[error("{first} and {second} share bytes {start}..{end} of one buffer")]
    BuffersOverlap {
        /// One range.
        first: String,
        /// The other.
        second: String,
        /// First shared byte.
        start: u64,
        /// One past the last shared byte.
        end: u64,
    },
    /// A binding made for another optimizer.
    #[error("the tensors were bound by another optimizer")]
    ForeignBinding,
}
