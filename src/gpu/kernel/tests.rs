//! Every composed shader, without a GPU: it parses, validates, and its structs match the host's.

mod files;
mod writers;

use super::*;
use crate::formats::Format;
use crate::gpu::control::{Request, State};
use crate::gpu::plan::{AlignedSegment, Header, SharedSegment, WORKGROUP_SIZE};
use crate::options::every_format;
use crate::{AdamW, Adan, AnyRule, DynRule, Group, Lamb, LossScale, Sgd};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::mem::offset_of;

/// The rules of the crate.
fn specs() -> Vec<RuleSpec> {
    AnyRule::all().into_iter().map(spec).collect()
}

fn spec(rule: impl Into<DynRule>) -> RuleSpec {
    *rule.into().spec()
}

/// The candidates of a layout with one rule.
fn candidate_of(spec: &RuleSpec, fused: &Fused) -> CandidateLayout {
    CandidateLayout::of(spec.scalars.len(), fused)
}

/// Every key that the optimizer can request, with one, a few and many groups.
fn keys(spec: &RuleSpec) -> Vec<KernelKey> {
    let slots = spec.slots.len();
    let mut keys = Vec::new();
    for groups in [1, 4, 50, 100] {
        for space in [Space::Uniform, Space::Storage] {
            for writable_gradients in [false, true] {
                for (access, aligned) in
                    [(Access::Vectors, true), (Access::Vectors, false), (Access::Elements, false)]
                {
                    for bits in 0..1u32 << slots {
                        let kept: Vec<_> = (0..slots).map(|slot| bits >> slot & 1 == 1).collect();
                        let uniform_bytes = 65_536;
                        for single in [false, true] {
                            // A table of one segment is never in storage.
                            if !(single && space == Space::Storage) {
                                keys.push(KernelKey {
                                    table_layout: TableLayout {
                                        access,
                                        aligned,
                                        space,
                                        uniform_bytes,
                                        by_tensor: false,
                                        // Each target with half of all else.
                                        target: Target::ALL[usize::from(writable_gradients)],
                                    },
                                    single,
                                    writable_gradients,
                                    groups,
                                    // Only a layer-wise rule can have this many tensors.
                                    scalars_space: if groups > 50 { Space::Storage } else { Space::Uniform },
                                    candidate: candidate_of(spec, &Fused::default()),
                                    kept: Vec::clone(&kept),
                                    storage: Storage::default(),
                                    fused: Fused::default(),
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    keys
}

fn validated(text: &str) -> naga::Module {
    let module =
        naga::front::wgsl::parse_str(text).unwrap_or_else(|error| panic!("{}", error.emit_to_string(text)));
    Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(text)));
    module
}

/// `(field, offset)` of each member, and the span.
fn layout_of(module: &naga::Module, name: &str) -> (Vec<(String, u32)>, u32) {
    let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name));
    let Some((_, naga::Type { inner: naga::TypeInner::Struct { members, span }, .. })) = found else {
        panic!("no struct {name}");
    };
    let members = members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset));
    (members.collect(), *span)
}

fn owned(fields: &[(&str, usize)]) -> Vec<(String, u32)> {
    fields.iter().map(|(name, offset)| (name.to_string(), *offset as u32)).collect()
}

macro_rules! offsets {
    ($type:ty: $($field:ident),*) => { owned(&[$((stringify!($field), offset_of!($type, $field))),*]) };
}

fn check(spec: &RuleSpec) {
    for key in keys(spec) {
        let module = validated(&update(spec, &key).wgsl());
        if spec.is_layer_wise() {
            check_phases(spec, &key);
        }
        assert_eq!(module.entry_points.len(), 1);
        assert_eq!(module.entry_points[0].name, "step");
        assert_eq!(module.entry_points[0].workgroup_size, [WORKGROUP_SIZE, 1, 1]);

        assert_eq!(storage_bindings(&module), key.storage_bindings(), "{key:?}");

        // A rule reads and writes every value once.
        for value in ["p"].iter().chain(spec.slots) {
            assert_eq!(spec.wgsl.matches(&format!("write_{value}(at, ")).count(), 1);
            assert_eq!(spec.wgsl.matches(&format!("read_{value}(at)")).count(), 1);
        }
        assert_eq!(spec.wgsl.matches("read_g(at)").count(), 1);

        check_scalars(spec, &key, &module);

        let expected = if key.table_layout.aligned {
            (offsets!(AlignedSegment: vector, state, vectors, group), size_of::<AlignedSegment>() as u32)
        } else {
            (
                offsets!(SharedSegment: vector, state, vectors, group, first, last),
                size_of::<SharedSegment>() as u32,
            )
        };
        assert_eq!(layout_of(&module, "Segment"), expected);

        let expected = offsets!(Header: segments, shift, stride, p, g, p_last, g_last, partials, scales);
        assert_eq!(layout_of(&module, "Header"), (expected, size_of::<Header>() as u32));

        let (table, span) = layout_of(&module, "Table");
        assert_eq!(table, owned(&[("header", 0), ("segments", HEADER_BYTES)]));
        if key.table_layout.space == Space::Uniform {
            assert!(span <= key.table_layout.uniform_bytes, "{span} bytes of uniform");
        }
    }
}

/// The scalars of a group in a kernel: their fields, and the size that the shader declares.
fn check_scalars(spec: &RuleSpec, key: &KernelKey, module: &naga::Module) {
    let (own, span) = layout_of(module, "GroupScalars");
    let factor = key.fused.grouped.then_some(&GROUP_FACTOR);
    let names: Vec<_> = spec.scalars.iter().chain(factor).collect();
    let fields = names.iter().enumerate().map(|(i, name)| (name.to_string(), 4 * i as u32));
    assert_eq!(own, fields.collect::<Vec<_>>());
    assert_eq!(span as usize, 4 * names.len());
    if key.scalars_space == Space::Uniform {
        let scalars = module.global_variables.iter().find(|(_, v)| v.name.as_deref() == Some("step_scalars"));
        let size = module.types[scalars.unwrap().1.ty].inner.size(module.to_ctx());
        assert_eq!(size as usize, 16 * key.candidate.vectors(key.groups as usize));
    }
}

/// A layout of one rule has candidates with the rule's scalars. After them come the weight of the average
/// and, last, the factor of a group's gradients, if there are any.
#[test]
fn sets_of_one_rule_have_its_scalars() {
    for spec in specs() {
        let scalars = spec.scalars.len() as u32;
        for fused in fusions() {
            for key in [false, true] {
                let fused = Fused { key, ..fused };
                let (header, grouped) = (1 + u32::from(key), u32::from(fused.grouped));
                let factor = scalars + u32::from(fused.ema);
                let stride = (factor + grouped).div_ceil(4);
                let want = CandidateLayout { header, stride, weight: scalars, factor };
                assert_eq!(candidate_of(&spec, &fused), want);
                assert_eq!(want.vectors(3), (want.header + 3 * want.stride) as usize);
            }
        }
    }
    let layout = |groups: &[Group]| Layout::new(groups.iter().cloned()).unwrap();
    let group = |rule: AnyRule| Group::new(rule.name(), rule).tensor(rule.name(), [5]);
    for rule in AnyRule::all() {
        let fused = Fused { grouped: true, ..Fused::default() };
        assert_eq!(CandidateLayout::new(&layout(&[group(rule)]), &fused), candidate_of(&spec(rule), &fused));
    }
    // The rule with the most scalars decides for all rules of a layout.
    let all: Vec<_> = AnyRule::all().into_iter().map(group).collect();
    let most = specs().iter().map(|spec| spec.scalars.len()).max().unwrap();
    assert_eq!(
        CandidateLayout::new(&layout(&all), &Fused::default()),
        CandidateLayout::of(most, &Fused::default())
    );
}

/// A rule beside a rule with more scalars takes more memory for its scalars than it needs, with the factor of
/// a group's gradients at the end.
#[test]
fn scalars_of_several_rules_validate_and_match_the_host() {
    let most = specs().iter().map(|spec| spec.scalars.len()).max().unwrap();
    let fused = |grouped| Fused { grouped, skips: true, ..Fused::default() };
    for spec in specs() {
        for key in keys(&spec).into_iter().filter(|key| !key.kept.contains(&false)) {
            let own = spec.scalars.len();
            for scalars in [own, own + 1, most, most + 3] {
                for grouped in [false, true] {
                    let fused = fused(grouped);
                    let key =
                        KernelKey { fused, candidate: CandidateLayout::of(scalars, &fused), ..key.clone() };
                    let text = update(&spec, &key).wgsl();
                    // The validation of one kernel of each kind, and the text of all.
                    if key.table_layout.space == Space::Uniform && !key.writable_gradients && !key.single {
                        check_scalars(&spec, &key, &validated(&text));
                        if spec.is_layer_wise() {
                            check_phases(&spec, &key);
                        }
                    }
                    let place = |i: usize| format!("v{}.{}", i / 4, ["x", "y", "z", "w"][i % 4]);
                    let fields = (0..own).map(place);
                    let factor = grouped.then(|| place(scalars));
                    let own = fields.chain(factor).collect::<Vec<_>>().join(", ");
                    assert!(text.contains(&format!("return GroupScalars({own});")), "{own} in\n{text}");
                }
            }
        }
    }
}

/// Every format in every place, with all options around the rule and without.
fn check_formats(spec: &RuleSpec) {
    let fused = Fused { key: true, skips: true, zero: true, ema: true, norms: true, ..Fused::default() };
    let key = keys(spec)
        .into_iter()
        .find(|key| key.table_layout.access == Access::Vectors && !key.table_layout.aligned)
        .unwrap();
    let kept = vec![true; spec.slots.len()];
    for Options { params, grads, states, master, .. } in every_format() {
        for (stochastic, fused, access) in
            [(true, fused, Access::Elements), (false, Fused::default(), Access::Vectors)]
        {
            let storage = Storage { params, grads, states, master, stochastic };
            let (table_layout, kept) =
                (TableLayout { access, by_tensor: stochastic, ..key.table_layout }, kept.clone());
            let candidate = candidate_of(spec, &fused);
            let key = KernelKey {
                table_layout,
                storage,
                candidate,
                kept,
                fused,
                writable_gradients: true,
                ..key.clone()
            };
            let module = validated(&update(spec, &key).wgsl());
            assert_eq!(storage_bindings(&module), key.storage_bindings(), "{key:?}");
            if stochastic {
                let (entry, span) = layout_of(&module, "Entry");
                assert_eq!(entry, owned(&[("segment", 0), ("element", size_of::<SharedSegment>())]));
                assert_eq!(span as usize, segment_bytes(false, true));
            }
            assert!(layout_of(&module, "Table").1 <= table_layout.uniform_bytes);
        }
    }
}

/// The first phase of a layer-wise rule, and the kernel after it.
fn check_phases(spec: &RuleSpec, key: &KernelKey) {
    let groups = KernelKey { scalars_space: Space::Uniform, ..key.clone() };
    let for_layer_norms = groups.for_layer_norms();
    let text = layer_norms(spec, &for_layer_norms).wgsl();
    let module = validated(&text);
    assert_eq!(module.entry_points[0].name, "layer_norms");
    assert_eq!(storage_bindings(&module), for_layer_norms.storage_bindings());
    // The first phase writes only partial sums.
    assert!(text.contains("const UPDATES = false;") && text.contains("const SKIPS = false;"));
    for by in FoldBy::ALL {
        let module = validated(&trust_ratios(spec, &groups, by).wgsl());
        assert_eq!(module.entry_points[0].name, "fold");
    }
}

fn storage_bindings(module: &naga::Module) -> u32 {
    let globals = module.global_variables.iter();
    globals.filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. })).count() as u32
}

#[test]
fn every_kernel_validates_and_matches_the_host() {
    specs().iter().for_each(check);
}

/// A rule with few slots, a rule with many and a layer-wise rule represent all: no rule knows a format.
#[test]
fn every_format_validates_in_every_place() {
    [spec(Sgd::default()), spec(Adan::default()), spec(Lamb::default())].iter().for_each(check_formats);
}

/// All combinations of options around a rule.
fn fusions() -> Vec<Fused> {
    let fused = |n: u32| {
        let [grouped, bounded, skips, zero, ema, norms] = std::array::from_fn(|i| n >> i & 1 == 1);
        // A loss scale skips, and splits as a clip of groups does.
        Fused { key: false, grouped, bounded, splits: grouped || skips, skips, zero, ema, norms }
    };
    (0..64).map(fused).collect()
}

#[test]
fn every_option_validates_in_every_kernel() {
    let adamw = spec(AdamW::default());
    for key in keys(&adamw) {
        // Slots do not matter here, and a hundred groups are like fifty.
        if key.kept.contains(&false) || key.groups > 4 {
            continue;
        }
        for fused in fusions() {
            if fused.zero && !key.writable_gradients {
                continue;
            }
            let key = KernelKey { fused, candidate: candidate_of(&adamw, &fused), ..key.clone() };
            let text = update(&adamw, &key).wgsl();
            let module = validated(&text);
            assert_eq!(storage_bindings(&module), key.storage_bindings(), "{key:?}");
            // A disabled option adds no binding, no barrier and no scalar.
            assert_eq!(text.contains(&format!("s.{GROUP_FACTOR}")), fused.grouped);
            assert_eq!(text.contains("workgroupBarrier"), fused.norms);
            assert_eq!(text.contains("ema_buffer"), fused.ema);
            assert_eq!(text.contains(&format!("s.{AVERAGE_WEIGHT}")), fused.ema);
            assert!(text.contains(&format!("const BOUNDED = {};", fused.bounded)));
            assert!(text.contains(&format!("const SKIPS = {};", fused.skips)));
            assert!(!text.contains("key = step_scalars[1];"));
        }
    }
}

/// A partial sum, in every kernel.
const PARTIAL: [(&str, usize); 4] = [("large", 0), ("middle", 4), ("tiny", 8), ("flags", 12)];

#[test]
fn every_reduction_validates_and_finds_its_place() {
    for key in keys(&spec(Sgd::default())) {
        let module = validated(&reduce(&key.table_layout, Format::F32).wgsl());
        assert_eq!(module.entry_points[0].name, "reduce");
        assert_eq!(module.entry_points[0].workgroup_size, [WORKGROUP_SIZE, 1, 1]);
        let bindings: Vec<_> = module.global_variables.iter().filter_map(|(_, v)| v.binding).collect();
        assert_eq!(bindings.len(), 3);
        let found = |binding| bindings.iter().any(|b| b.binding == binding);
        assert!(found(REDUCE_BINDING_G) && found(REDUCE_BINDING_PARTIALS));
        let (partial, span) = layout_of(&module, "Partial");
        assert_eq!((partial, span), (owned(&PARTIAL), 16));
    }
}

#[test]
fn every_fold_validates() {
    let folds = [Fold::Groups, Fold::All].into_iter().flat_map(|fold| FoldBy::ALL.map(|by| (fold, by)));
    for (fold, by) in folds {
        let module = validated(&super::fold(fold, by).wgsl());
        assert_eq!(module.entry_points[0].name, "fold");
        assert_eq!(layout_of(&module, "Partial"), (owned(&PARTIAL), 16));
        if fold == Fold::All {
            assert_eq!(layout_of(&module, "State"), state());
        }
    }
}

fn state() -> (Vec<(String, u32)>, u32) {
    let fields = offsets!(
        State: scale, good, taken, number, flags, norm, factor, used_scale, param_norm, update_norm, epoch,
        disordered
    );
    (fields, size_of::<State>() as u32)
}

#[test]
fn the_control_kernel_validates_and_matches_the_host() {
    let clip =
        |clip| Options { clip: Some(clip), loss_scale: Some(LossScale::default()), ..Options::default() };
    let adamw = spec(AdamW::default());
    let reported = Options { report: true, ..Options::default() };
    for options in [clip(Clip::GlobalNorm(1.0)), clip(Clip::GroupNorm(1.0)), reported] {
        let module = validated(&control(&options, &candidate_of(&adamw, &Fused::of(&options)), 7).wgsl());
        let (request, span) = layout_of(&module, "Request");
        let mut fields = offsets!(
            Request: number, first, count, unscale, max_norm, growth, backoff, interval, min_scale, max_scale,
            partials, unused
        );
        fields.push(("candidates".into(), size_of::<Request>() as u32));
        assert_eq!(request, fields);
        assert!(span as usize >= size_of::<Request>());
        assert_eq!(layout_of(&module, "State"), state());
        assert_eq!(layout_of(&module, "Partial"), (owned(&PARTIAL), 16));
    }
}

/// A mistake in a rule is reported at the rule's own line, because the rule comes first.
#[test]
fn errors_name_the_rules_own_line() {
    let adamw = spec(AdamW::default());
    let text = update(&adamw, &keys(&adamw)[0]).wgsl().replacen("sqrt(w)", "sqr(w)", 1);
    let error = naga::front::wgsl::parse_str(&text).expect_err("sqr is no function");
    let own = adamw.wgsl.lines().position(|l| l.contains("sqrt(w)")).unwrap() + 1;
    assert_eq!(error.location(&text).unwrap().line_number as usize, own);
}
