//! The choice of files for each kernel. Text that changes a binding is a file, text that changes arithmetic
//! depends on a constant, and text that repeats per buffer is a template.

use super::declare::{self, Phase};
use super::{Access, CandidateLayout, Fold, FoldBy, Fused, KernelKey, TableLayout};
use crate::formats::Format;
use crate::options::{Options, Storage};
use crate::rules::{AnyRule, DynRule, RuleSpec};
use std::borrow::Cow;

/// A file of a kernel, or the declarations that the host prints.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Part {
    /// The name of the file below `shaders/`, or `declarations`.
    pub name: Cow<'static, str>,
    /// The text; in a template all placeholders are replaced.
    pub text: Cow<'static, str>,
}

/// The text of a kernel, file by file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Composed {
    /// The name of the entry point.
    pub entry_point: &'static str,
    /// The files, in order.
    pub parts: Vec<Part>,
}

impl Composed {
    /// The text that a device compiles.
    #[must_use]
    pub fn wgsl(&self) -> String {
        self.parts.iter().flat_map(|part| [&part.text, "\n"]).collect()
    }
}

impl Part {
    const fn file(name: &'static str, text: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), text: Cow::Borrowed(text) }
    }

    fn declarations(text: String) -> Self {
        Self { name: Cow::Borrowed("declarations"), text: text.into() }
    }

    /// A template with its placeholders replaced.
    fn with(self, replaced: &[(&str, &str)]) -> Self {
        let replace = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
        Self { text: replaced.iter().fold(self.text.into_owned(), replace).into(), ..self }
    }

    /// A template about values of a format.
    fn of_format(self, format: Format) -> Self {
        self.with(&[("FORMAT", format.name()), ("RAW", format.raw()), ("KEEP", format.keep())])
    }
}

/// A file below `shaders/`.
macro_rules! file {
    ($path:literal) => {
        Part::file($path, include_str!(concat!("../../../shaders/", $path)))
    };
}

/// The update of a rule.
pub(crate) fn update(spec: &RuleSpec, key: &KernelKey) -> Composed {
    let mut parts = if key.fused.norms {
        vec![rule(spec), file!("kernels/step_norms.wgsl"), file!("parts/lib/loop.wgsl")]
    } else {
        vec![rule(spec), file!("kernels/step.wgsl")]
    };
    parts.extend(with_rule(spec, key, Phase::Update));
    if key.fused.norms {
        parts.extend([file!("parts/lib/norms.wgsl"), file!("parts/lib/partials.wgsl")]);
    }
    Composed { entry_point: "step", parts }
}

/// The first phase of a layer-wise rule, under a key [for it](KernelKey::for_layer_norms).
pub(crate) fn layer_norms(spec: &RuleSpec, key: &KernelKey) -> Composed {
    let mut parts = vec![rule(spec), file!("kernels/layer_norms.wgsl"), file!("parts/lib/loop.wgsl")];
    parts.extend(with_rule(spec, key, Phase::LayerNorms));
    parts.extend([file!("parts/lib/norms.wgsl"), file!("parts/lib/partials.wgsl")]);
    Composed { entry_point: "layer_norms", parts }
}

/// The kernel between the phases of a layer-wise rule: from the norms of each tensor to its scalars.
pub(crate) fn trust_ratios(spec: &RuleSpec, key: &KernelKey, by: FoldBy) -> Composed {
    let mut parts = vec![rule(spec)];
    parts.extend(fold_by(by));
    parts.push(file!("parts/fold/tensors.wgsl"));
    // The rule's other functions call them.
    let values = ["p", "g"].iter().chain(spec.slots);
    parts.extend(values.map(|value| file!("parts/slots/dropped.wgsl").with(&[("SLOT", value)])));
    parts.extend([file!("parts/lib/arithmetic.wgsl"), file!("parts/lib/norms.wgsl")]);
    parts.push(Part::declarations(declare::trust_ratios(spec, key)));
    Composed { entry_point: "fold", parts }
}

/// The gradient scan.
pub(crate) fn reduce(table: &TableLayout, grads: Format) -> Composed {
    let storage = Storage { grads, ..Storage::default() };
    let mut parts = vec![file!("kernels/reduce.wgsl").of_format(grads), file!("parts/lib/loop.wgsl")];
    parts.extend([file!("parts/lib/norms.wgsl"), load("g", grads, table.access)]);
    parts.extend(segments(table));
    parts.extend(formats(&storage));
    parts.push(Part::declarations(declare::reduce(table, grads)));
    Composed { entry_point: "reduce", parts }
}

/// A kernel that adds up partial sums.
pub(crate) fn fold(fold: Fold, by: FoldBy) -> Composed {
    let mut parts = fold_by(by).to_vec();
    match fold {
        Fold::Groups => parts.push(file!("parts/fold/groups.wgsl")),
        Fold::All => parts.extend([file!("parts/fold/all.wgsl"), file!("parts/lib/control_state.wgsl")]),
    }
    parts.push(file!("parts/lib/norms.wgsl"));
    parts.push(Part::declarations(declare::fold(fold)));
    Composed { entry_point: "fold", parts }
}

/// The entry point of a kernel that adds up partial sums.
fn fold_by(by: FoldBy) -> [Part; 2] {
    let driver = match by {
        FoldBy::Workgroup => file!("kernels/fold.wgsl"),
        FoldBy::Thread => file!("kernels/fold_few.wgsl"),
    };
    [driver, file!("parts/fold/sums.wgsl")]
}

/// The control kernel of a layout with `groups` groups.
pub(crate) fn control(options: &Options, candidate: &CandidateLayout, groups: usize) -> Composed {
    let mut parts = vec![
        file!("kernels/control.wgsl"),
        file!("parts/lib/control_state.wgsl"),
        file!("parts/lib/norms.wgsl"),
        file!("parts/lib/wide.wgsl"),
    ];
    parts.push(Part::declarations(declare::control(options, candidate, groups)));
    Composed { entry_point: "control", parts }
}

/// The rule's own text. It comes first, so that an error names the rule's own line.
fn rule(spec: &RuleSpec) -> Part {
    // Rules may share a file, which has the name of the first of them.
    let built_in = AnyRule::all().into_iter().map(|rule| *DynRule::from(rule).spec());
    let name = match built_in.into_iter().find(|other| other.wgsl == spec.wgsl) {
        Some(other) => format!("rules/{}.wgsl", other.name),
        None => format!("rule {}", spec.name),
    };
    Part { name: name.into(), text: Cow::Borrowed(spec.wgsl) }
}

/// All parts of a kernel with a rule, except its entry point.
fn with_rule(spec: &RuleSpec, key: &KernelKey, phase: Phase) -> Vec<Part> {
    let KernelKey { storage, table_layout, fused, kept, .. } = key;
    let Fused { grouped, zero, ema, norms, .. } = *fused;
    let norms = norms && phase == Phase::Update;
    let (access, in_blocks) = (table_layout.access, storage.states.block().is_some());
    let mut parts = vec![file!("parts/lib/update.wgsl")];
    let params = match storage.master() {
        None => file!("parts/params/plain.wgsl"),
        Some((_, Format::F32)) => file!("parts/params/master.wgsl"),
        Some(_) => file!("parts/params/remainder.wgsl"),
    };
    parts.push(params.of_format(storage.params));
    parts.push(file!("parts/grads/read.wgsl").of_format(storage.grads));
    let grads = if zero { file!("parts/grads/zeroed.wgsl") } else { file!("parts/grads/kept.wgsl") };
    parts.push(grads.of_format(storage.grads));
    let mut ordinal = 0;
    for ((nth, slot), kept) in (1..).zip(spec.slots).zip(kept) {
        let part = match (kept, in_blocks) {
            (false, _) => file!("parts/slots/dropped.wgsl"),
            (true, false) => file!("parts/slots/stored.wgsl"),
            (true, true) => file!("parts/slots/block.wgsl"),
        };
        let own = [("SLOT", *slot), ("NTH", &format!("{nth}u")), ("ORDINAL", &format!("{ordinal}u"))];
        parts.push(part.of_format(storage.states).with(&own));
        ordinal += u32::from(*kept);
    }
    let blocks = in_blocks && ordinal > 0;
    parts.push(if blocks { file!("parts/blocks/shared.wgsl") } else { file!("parts/blocks/none.wgsl") });
    parts.push(if grouped { file!("parts/clip/groups.wgsl") } else { file!("parts/clip/all.wgsl") });
    parts.push(if ema { file!("parts/ema/kept.wgsl") } else { file!("parts/ema/none.wgsl") });
    parts.push(if norms {
        file!("parts/update_norms/taken.wgsl")
    } else {
        file!("parts/update_norms/none.wgsl")
    });
    parts.extend([load("p", storage.params, access), store("p", storage.params, access)]);
    parts.push(load("g", storage.grads, access));
    if zero {
        parts.push(store("g", storage.grads, access));
    }
    parts.extend(segments(table_layout));
    parts.push(if storage.stochastic {
        file!("parts/random/counter.wgsl")
    } else {
        file!("parts/random/none.wgsl")
    });
    parts.extend(formats(storage));
    parts.push(file!("parts/lib/arithmetic.wgsl"));
    parts.push(Part::declarations(declare::with_rule(spec, key, phase, ordinal)));
    parts
}

fn segments(table: &TableLayout) -> [Part; 2] {
    let segments = if table.aligned {
        file!("parts/segments/aligned.wgsl")
    } else {
        file!("parts/segments/shared.wgsl")
    };
    [segments, file!("parts/lib/table.wgsl")]
}

/// The formats that are stored, each once, and f32.
fn formats(storage: &Storage) -> Vec<Part> {
    let stored = [storage.params, storage.grads, storage.states];
    let mut parts = vec![file!("parts/formats/f32.wgsl")];
    if stored.iter().any(|format| format.bytes() == 2) {
        parts.push(file!("parts/formats/half.wgsl"));
    }
    for format in Format::ALL.into_iter().filter(|format| stored.contains(format)) {
        match format {
            Format::F32 => {}
            Format::F16 => parts.push(file!("parts/formats/f16.wgsl")),
            Format::Bf16 => parts.push(file!("parts/formats/bf16.wgsl")),
            Format::Q8 => parts.push(file!("parts/formats/q8.wgsl")),
        }
    }
    parts
}

fn load(side: &str, format: Format, access: Access) -> Part {
    let part = match (access, format.bytes()) {
        (Access::Vectors, _) => file!("parts/load/vectors.wgsl"),
        (Access::Elements, 4) => file!("parts/load/words4.wgsl"),
        (Access::Elements, _) => file!("parts/load/words2.wgsl"),
    };
    part.of_format(format).with(&[("SIDE", side)])
}

fn store(side: &str, format: Format, access: Access) -> Part {
    let part = match (access, format.bytes()) {
        (Access::Vectors, _) => file!("parts/store/vectors.wgsl"),
        (Access::Elements, 4) => file!("parts/store/words4.wgsl"),
        (Access::Elements, _) => file!("parts/store/words2.wgsl"),
    };
    part.of_format(format).with(&[("SIDE", side)])
}
