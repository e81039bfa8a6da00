//! Parameter groups: tensors with a rule.

use crate::error::StepError;
use crate::float::Float;
use crate::rules::{DynRule, Refusal};
use crate::schedule::Schedule;
use crate::step::Step;

/// A parameter group: tensors that share a rule and its hyperparameters.
///
/// Groups of one layout may have different rules. Clipping, skipped steps, the loss scale and reports cover
/// all groups.
///
/// ```
/// use wgpu_optim::{AdamW, Group};
/// let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
/// let decay = Group::new("decay", adamw).tensor("wte", [50257, 768]);
/// let no_decay = Group::new("no_decay", AdamW { weight_decay: 0.0, ..adamw }).tensor("ln.b", [768]);
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    pub(super) name: String,
    pub(super) rule: DynRule,
    pub(super) lr_factor: Schedule,
    pub(super) frozen: bool,
    pub(super) tensors: Vec<Declared>,
}

#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) offset: Option<u64>,
}

impl Group {
    /// Makes a group without tensors. `rule` is a rule of any type, or an [`AnyRule`](crate::AnyRule).
    #[must_use]
    pub fn new(name: impl Into<String>, rule: impl Into<DynRule>) -> Self {
        Self {
            name: name.into(),
            rule: rule.into(),
            lr_factor: Schedule::Constant(1.0),
            frozen: false,
            tensors: Vec::new(),
        }
    }

    /// Multiplies every step's learning rate for this group: a number, or a [`Schedule`] of the steps
    /// recorded so far, skipped steps included. Default 1.
    ///
    /// If every step has the learning rate 1.0, a group's schedule is its learning rate. A momentum of the
    /// schedule takes precedence over the step's.
    ///
    /// ```
    /// use wgpu_optim::{AdamW, Group, Layout, cpu, schedule};
    /// let body = schedule::cosine(1e-4, 0.0, 1_000);
    /// let layout = Layout::packed([
    ///     Group::new("body", AdamW::default()).lr_factor(body).tensor("w", [4]),
    ///     Group::new("head", AdamW::default()).lr_factor(1e-3).tensor("v", [2]),
    /// ])?;
    /// cpu::Optimizer::new(layout)?.step(cpu::Tensors::flat(&mut [0.0; 6], &[1.0; 6]), 1.0)?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    #[must_use]
    pub fn lr_factor(mut self, factor: impl Into<Schedule>) -> Self {
        self.lr_factor = factor.into();
        self
    }

    /// Sets whether the group starts frozen: a step then neither reads nor writes its tensors. Default false.
    #[must_use]
    pub fn frozen(mut self, frozen: bool) -> Self {
        self.frozen = frozen;
        self
    }

    /// Adds a tensor after the one declared before it (in any group), the first at 0.
    ///
    /// [`Layout::new`](crate::Layout::new) moves it up to the next multiple of 4 elements.
    #[must_use]
    pub fn tensor(self, name: impl Into<String>, shape: impl AsRef<[u64]>) -> Self {
        self.declare(name.into(), shape.as_ref(), None)
    }

    /// Adds a tensor that starts at element `offset` of the flat space.
    #[must_use]
    pub fn tensor_at(self, name: impl Into<String>, shape: impl AsRef<[u64]>, offset: u64) -> Self {
        self.declare(name.into(), shape.as_ref(), Some(offset))
    }

    fn declare(mut self, name: String, shape: &[u64], offset: Option<u64>) -> Self {
        self.tensors.push(Declared { name, shape: shape.to_vec(), offset });
        self
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group's rule with its hyperparameters.
    #[must_use]
    pub fn rule(&self) -> &DynRule {
        &self.rule
    }

    /// The factor of every step's learning rate.
    #[must_use]
    pub fn factor(&self) -> &Schedule {
        &self.lr_factor
    }

    /// Whether the group is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Writes the scalars of the group's next step to `out`, after `recorded` steps on the host, and advances
    /// `carry`.
    pub(super) fn scalars(
        &self,
        step: Step,
        recorded: u64,
        carry: &mut Carry,
        kept: &[bool],
        out: &mut [f64],
    ) -> Result<(), StepError> {
        let refuse =
            |field, value, bound| StepError::Argument { field, group: self.name.clone(), value, bound };
        let factor = self.lr_factor.at(recorded);
        let factor = factor.map_err(|reason| StepError::Factor { group: self.name.clone(), reason })?;
        let lr = step.lr * factor.lr;
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(refuse("learning rate", lr, "finite and at least 0"));
        }
        let momentum = factor.momentum.or(step.momentum);
        let t = carry.taken + 1;
        let value = momentum.unwrap_or_default();
        self.rule.scalars(momentum, kept, lr, t, &mut carry.rule, out).map_err(|refusal| match refusal {
            Refusal::NoMomentum => refuse("momentum", value, "absent: the rule has no momentum"),
            Refusal::Hyperparameter { field, value, bound } => refuse(field, value, bound),
            Refusal::Slot => {
                refuse("momentum", value, "0: no group's configuration keeps the state it needs")
            }
        })?;
        carry.taken = t;
        for (scalar, &value) in self.rule.spec().scalars.iter().zip(&*out) {
            if !f32::from_f64(value).is_finite() {
                let (rule, group) = (self.rule.name(), self.name.clone());
                return Err(StepError::ScalarOverflow { rule, scalar, group, value });
            }
        }
        Ok(())
    }
}

/// Values that the host carries for a group from step to step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Carry {
    /// The number that the rule carries.
    pub rule: f64,
    /// Steps that the group has taken: recorded, not skipped, and not while it was frozen.
    pub taken: u64,
}
