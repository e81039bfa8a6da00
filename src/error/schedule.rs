//! Errors of schedules and recipes.

use super::{Count, Number};

/// The error of a schedule or a recipe.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A field or a value of a schedule is outside its range or not finite.
    #[error("{schedule}: {field} = {}, must be {bound}", Number(*.value))]
    Field {
        /// The name of the schedule's kind.
        schedule: &'static str,
        /// The field's name, or `"value"` for the value at a step.
        field: &'static str,
        /// The value that was refused.
        value: f64,
        /// The range of the field.
        bound: &'static str,
    },
    /// The schedule ends before the step.
    #[error("{schedule}: step {step}, must be at most {bound}", step = Count(*.step), bound = Count(*.bound))]
    PastEnd {
        /// The name of the schedule's kind.
        schedule: &'static str,
        /// The step that was asked for, counted from 0.
        step: u64,
        /// The last step of the schedule.
        bound: u64,
    },
    /// An argument of a recipe is outside its range or not finite.
    #[error("{recipe}: {argument} = {}, must be {bound}", Number(*.value))]
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
}
