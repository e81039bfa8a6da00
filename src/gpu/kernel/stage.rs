//! The stages of a step.

/// A stage of a step. A step has its stages in this order, and only the stages that its rules and options
/// need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Sums the squares of the gradients, and checks whether all are finite.
    Reduce,
    /// Adds up the sums of each group.
    FoldGroups,
    /// Decides on clip factor, skip and loss scale, and writes the scalars of the step.
    Control,
    /// The first phase of a layer-wise rule: squares of parameters and update directions.
    LayerNorms,
    /// Computes the trust ratio of each tensor from its norms.
    TrustRatio,
    /// Updates parameters and state.
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
