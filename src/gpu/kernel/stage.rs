//! The stages of a step.

/// A stage of a step. A step has them in this order, and only those that its rules and options need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Sums the squares of the gradients, and finds out whether all are finite.
    Reduce,
    /// Adds up the sums of each group.
    FoldGroups,
    /// Decides on clip factor, skip and loss scale, and writes the scalars of the step.
    Control,
    /// The first phase of a layer-wise rule: squares of parameters and update directions.
    LayerNorms,
    /// From the norms of each tensor to its trust ratio.
    TrustRatio,
    /// The update.
    Update,
    /// Adds up the norms of parameters and update.
    FoldNorms,
}

impl Stage {
    /// The stages, in order.
    pub const ALL: [Self; 7] = [
        Self::Reduce,
        Self::FoldGroups,
        Self::Control,
        Self::LayerNorms,
        Self::TrustRatio,
        Self::Update,
        Self::FoldNorms,
    ];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reduce => "reduce",
            Self::FoldGroups => "fold-groups",
            Self::Control => "control",
            Self::LayerNorms => "layer-norms",
            Self::TrustRatio => "trust-ratio",
            Self::Update => "update",
            Self::FoldNorms => "fold-norms",
        }
    }
}
