//! Every composed shader, without a GPU: it parses, validates, and its structs are what the host writes.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::fmt::Write as _;
use std::mem::offset_of;
use wgpu_optim::control::{Request, State};
use wgpu_optim::kernel::{
    Access, Around, ENTRY_POINT, FOLD_ENTRY_POINT, Fold, GROUP_FACTOR, Key, MEASURE_ENTRY_POINT,
    REDUCE_BINDING_G, REDUCE_BINDING_PARTIALS, REDUCE_ENTRY_POINT, Storage, Walk, bytes_moved,
    control_source, fold_source, measure_source, ratio_source, reduce_source, row_vectors, set_vectors,
    source,
};
use wgpu_optim::plan::{HEADER_BYTES, Header, SharedTile, Space, WORKGROUP_SIZE, WholeTile, tile_bytes};
use wgpu_optim::rules::{scalar_names, slots};
use wgpu_optim::{
    AdamW, Adan, Clip, Ema, Format, Lamb, LossScale, Master, Options, Rule, Sgd, Twin, for_each_rule,
};

/// Every key that the optimizer can ask for, with one, a few and many rows.
fn keys(slots: usize) -> Vec<Key> {
    let mut keys = Vec::new();
    for rows in [1, 4, 50, 100] {
        for space in [Space::Uniform, Space::Storage] {
            for writable_gradients in [false, true] {
                for (access, whole) in
                    [(Access::Quads, true), (Access::Quads, false), (Access::Elements, false)]
                {
                    for bits in 0..1u32 << slots {
                        let kept: Vec<_> = (0..slots).map(|slot| bits >> slot & 1 == 1).collect();
                        let uniform_bytes = 65_536;
                        for single in [false, true] {
                            // A table of one tile is never in storage.
                            if !(single && space == Space::Storage) {
                                keys.push(Key {
                                    walk: Walk { access, whole, space, uniform_bytes, by_tensor: false },
                                    single,
                                    writable_gradients,
                                    rows,
                                    // As many rows as only the tensors of a layer-wise rule can be.
                                    rows_space: if rows > 50 { Space::Storage } else { Space::Uniform },
                                    kept: Vec::clone(&kept),
                                    storage: Storage::default(),
                                    around: Around::default(),
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

fn check<R: Rule>() {
    for key in keys(slots::<R>().len()) {
        let module = validated(&source::<R>(&key));
        if R::RATIO.is_some() {
            check_phases::<R>(&key);
        }
        assert_eq!(module.entry_points.len(), 1);
        assert_eq!(module.entry_points[0].name, ENTRY_POINT);
        assert_eq!(module.entry_points[0].workgroup_size, [WORKGROUP_SIZE, 1, 1]);

        assert_eq!(storage_bindings(&module), key.storage_bindings(), "{key:?}");

        // A rule reads and writes every value once.
        for value in ["p"].iter().chain(slots::<R>()) {
            assert_eq!(R::WGSL.matches(&format!("write_{value}(at, ")).count(), 1);
            assert_eq!(R::WGSL.matches(&format!("read_{value}(at)")).count(), 1);
        }
        assert_eq!(R::WGSL.matches("read_g(at)").count(), 1);

        let (row, span) = layout_of(&module, "Row");
        let names = scalar_names::<R>().iter().enumerate();
        assert_eq!(row, names.map(|(i, name)| (name.to_string(), 4 * i as u32)).collect::<Vec<_>>());
        assert_eq!(span.div_ceil(16) as usize, row_vectors::<R>(&key.around));
        if key.rows_space == Space::Uniform {
            let rows = module.global_variables.iter().find(|(_, v)| v.name.as_deref() == Some("rows"));
            let size = module.types[rows.unwrap().1.ty].inner.size(module.to_ctx());
            assert_eq!(size as usize, 16 * set_vectors::<R>(key.rows as usize, &key.around));
        }

        let expected = if key.walk.whole {
            (offsets!(WholeTile: quad, state, quads, group), size_of::<WholeTile>() as u32)
        } else {
            (offsets!(SharedTile: quad, state, quads, group, first, last), size_of::<SharedTile>() as u32)
        };
        assert_eq!(layout_of(&module, "Record"), expected);

        let expected = offsets!(Header: records, shift, stride, p, g, p_last, g_last, partials, scales);
        assert_eq!(layout_of(&module, "Header"), (expected, size_of::<Header>() as u32));

        let (table, span) = layout_of(&module, "Table");
        assert_eq!(table, owned(&[("header", 0), ("records", HEADER_BYTES)]));
        if key.walk.space == Space::Uniform {
            assert!(span <= key.walk.uniform_bytes, "{span} bytes of uniform");
        }
    }
}

/// Every format in every place, with all that stands around the rule and without.
fn check_formats<R: Rule>() {
    let around = Around {
        head: true,
        key: true,
        skips: true,
        zero: true,
        ema: true,
        norms: true,
        ..Around::default()
    };
    let key = keys(0).into_iter().find(|key| key.walk.access == Access::Quads && !key.walk.whole).unwrap();
    let kept = vec![true; slots::<R>().len()];
    for (params, grads, states, master) in every_format() {
        for (stochastic, around, access) in
            [(true, around, Access::Elements), (false, Around::default(), Access::Quads)]
        {
            let storage = Storage { params, grads, states, master, stochastic };
            let (walk, kept) = (Walk { access, by_tensor: stochastic, ..key.walk }, kept.clone());
            let key = Key { walk, storage, kept, around, writable_gradients: true, ..key.clone() };
            let module = validated(&source::<R>(&key));
            assert_eq!(storage_bindings(&module), key.storage_bindings(), "{key:?}");
            let (entry, span) = layout_of(&module, "Entry");
            assert_eq!(entry, owned(&[("record", 0), ("element", size_of::<SharedTile>())]));
            assert_eq!(span as usize, tile_bytes(false, true));
            assert!(layout_of(&module, "Table").1 <= walk.uniform_bytes);
        }
    }
}

/// What can be stored together.
fn every_format() -> Vec<(Format, Format, Format, Master)> {
    let mut all = Vec::new();
    for params in Format::TENSORS {
        for master in [Master::F32, Master::Remainder, Master::None] {
            for grads in Format::TENSORS {
                for states in Format::STATES {
                    let options = Options { params, grads, states, master, ..Options::default() };
                    if options.validate().is_ok() && (params != Format::F32 || master == Master::F32) {
                        all.push((params, grads, states, master));
                    }
                }
            }
        }
    }
    all
}

/// The first phase of a layer-wise rule, and what follows it.
fn check_phases<R: Rule>(key: &Key) {
    let groups = Key { rows_space: Space::Uniform, ..key.clone() };
    let measuring = groups.measuring();
    let text = measure_source::<R>(&measuring);
    let module = validated(&text);
    assert_eq!(module.entry_points[0].name, MEASURE_ENTRY_POINT);
    assert_eq!(storage_bindings(&module), measuring.storage_bindings());
    // It writes partial results and nothing else.
    let writes = text.lines().filter(|line| line.contains("_buffer[") && line.contains("] = "));
    assert_eq!(writes.filter(|line| !line.contains("p_buffer[")).count(), 0, "{text}");
    assert!(!text.contains("{ store_p"));
    let module = validated(&ratio_source::<R>(&groups));
    assert_eq!(module.entry_points[0].name, FOLD_ENTRY_POINT);
}

fn storage_bindings(module: &naga::Module) -> u32 {
    let globals = module.global_variables.iter();
    globals.filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. })).count() as u32
}

macro_rules! check_all {
    ($($rule:ty),*) => { $(check::<$rule>();)* };
}

#[test]
fn every_kernel_validates_and_matches_the_host() {
    for_each_rule!(check_all);
}

/// Of a rule with few slots, one with many and a layer-wise one: no rule knows a format.
#[test]
fn every_format_validates_in_every_place() {
    check_formats::<Sgd>();
    check_formats::<Adan>();
    check_formats::<Lamb>();
}

/// Everything that can stand around a rule.
fn arounds() -> Vec<Around> {
    let around = |n: u32| {
        let [grouped, bounded, skips, zero, ema, norms] = std::array::from_fn(|i| n >> i & 1 == 1);
        let head = grouped || bounded || skips || ema || norms;
        Around { head, key: false, grouped, bounded, skips, zero, ema, norms }
    };
    (0..64).map(around).chain([Around { head: true, ..Around::default() }]).collect()
}

#[test]
fn every_option_validates_in_every_kernel() {
    for key in keys(slots::<AdamW>().len()) {
        // Slots are no matter here, and one of two hundred groups is as good as the other.
        if key.kept.contains(&false) || key.rows > 4 {
            continue;
        }
        for around in arounds() {
            if around.zero && !key.writable_gradients {
                continue;
            }
            let key = Key { around, ..key.clone() };
            let text = source::<AdamW>(&key);
            let module = validated(&text);
            assert_eq!(storage_bindings(&module), key.storage_bindings(), "{key:?}");
            // What is off is not there.
            assert_eq!(text.contains("head.x"), around.head && !around.grouped);
            assert_eq!(text.contains(&format!("s.{GROUP_FACTOR}")), around.grouped);
            assert_eq!(text.contains("partials[") || text.contains("workgroupBarrier"), around.norms);
            assert_eq!(text.contains("ema_buffer"), around.ema);
            assert_eq!(text.contains("clamp("), around.bounded);
            assert_eq!(text.contains("head.y"), around.skips);
        }
    }
}

/// A partial result, in every kernel.
const PARTIAL: [(&str, usize); 4] = [("large", 0), ("middle", 4), ("tiny", 8), ("flags", 12)];

#[test]
fn every_reduction_validates_and_finds_its_place() {
    for key in keys(0) {
        let module = validated(&reduce_source(&key.walk, Format::F32));
        assert_eq!(module.entry_points[0].name, REDUCE_ENTRY_POINT);
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
    for fold in [Fold::Groups, Fold::All] {
        let module = validated(&fold_source(fold));
        assert_eq!(module.entry_points[0].name, FOLD_ENTRY_POINT);
        assert_eq!(layout_of(&module, "Partial"), (owned(&PARTIAL), 16));
        if fold == Fold::All {
            assert_eq!(layout_of(&module, "State"), state());
        }
    }
}

fn state() -> (Vec<(String, u32)>, u32) {
    let fields = offsets!(
        State: scale, good, taken, number, flags, norm, factor, used_scale, param_norm, update_norm
    );
    (fields, size_of::<State>() as u32)
}

#[test]
fn the_control_kernel_validates_and_matches_the_host() {
    let clip =
        |clip| Options { clip: Some(clip), loss_scale: Some(LossScale::default()), ..Options::default() };
    let reported = Options { report: true, ..Options::default() };
    for options in [clip(Clip::GlobalNorm(1.0)), clip(Clip::GroupNorm(1.0)), reported] {
        let module = validated(&control_source::<AdamW>(&options, 7));
        let (request, span) = layout_of(&module, "Request");
        let mut fields = offsets!(
            Request: number, first, count, unscale, max_norm, growth, backoff, interval, min_scale, max_scale, partials, unused
        );
        fields.push(("sets".into(), size_of::<Request>() as u32));
        assert_eq!(request, fields);
        assert!(span as usize >= size_of::<Request>());
        assert_eq!(layout_of(&module, "State"), state());
        assert_eq!(layout_of(&module, "Partial"), (owned(&PARTIAL), 16));
    }
}

/// A mistake in a rule is reported at the rule's own line, because the rule comes first.
#[test]
fn errors_name_the_rules_own_line() {
    let text = source::<AdamW>(&keys(slots::<AdamW>().len())[0]).replacen("sqrt(w)", "sqr(w)", 1);
    let error = naga::front::wgsl::parse_str(&text).expect_err("sqr is no function");
    let own = AdamW::WGSL.lines().position(|l| l.contains("sqrt(w)")).unwrap() + 1;
    assert_eq!(error.location(&text).unwrap().line_number as usize, own);
}

macro_rules! files {
    ($($rule:ty),*) => {
        $({
            let root = env!("CARGO_MANIFEST_DIR");
            let name = <$rule as Rule>::NAME;
            let shader = std::fs::read_to_string(format!("{root}/shaders/rules/{name}.wgsl")).unwrap();
            assert_eq!(shader, <$rule as Rule>::WGSL);
            let source = std::fs::read_to_string(format!("{root}/src/rules/{name}.rs")).unwrap();
            for part in ["```text", "eviation", "efaults", "State: ", "MAX_ULPS", "```\n", "/// Reference: "] {
                assert!(source.contains(part), "the documentation of {name} has no {part:?}");
            }
            let golden = std::fs::read_dir(format!("{root}/tests/golden")).unwrap();
            let prefix = format!("{name}-");
            assert!(
                golden.flatten().any(|f| f.file_name().to_string_lossy().starts_with(&prefix)),
                "no golden run of {name}"
            );
            let readme = std::fs::read_to_string(format!("{root}/README.md")).unwrap();
            let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("README.md has no row for {name}"));
            let budget = format!("| {} ulp |", <$rule as Twin>::MAX_ULPS);
            assert!(row.ends_with(&budget), "{row}: not {budget}");
            // State and traffic of the defaults, and of what keeps most.
            let all = slots::<$rule>().len();
            let kept: Vec<_> = (0..all).map(|slot| <$rule>::default().keeps_slot(slot)).collect();
            let cells: Vec<_> = row.split(" | ").collect();
            let state = |kept: &[bool]| 4 * kept.iter().filter(|&&kept| kept).count() as u64;
            let moved = |kept: &[bool]| bytes_moved::<$rule>(kept, &Options::default(), 1);
            for (cell, bytes) in [(cells[2], state as fn(&[bool]) -> u64), (cells[3], moved)] {
                let bytes = [bytes(&kept), bytes(&vec![true; all])];
                assert!(cell.starts_with(&format!("{} B", bytes[0])), "{row}: not {} B", bytes[0]);
                assert!(cell.ends_with(&format!("{} B", bytes[1])), "{row}: not {} B", bytes[1]);
            }
        })*
    };
}

/// What a step moves for a parameter, with options and formats.
#[test]
fn bytes_a_parameter() {
    let none = Options::default();
    let clip = Some(Clip::GlobalNorm(1.0));
    let pipeline = Options { divide: true, skip_nonfinite: true, clip, zero_gradients: true, ..none };
    let ema = Some(Ema { decay: 0.9, debias: false });
    let (bf16, remainder) = (Format::Bf16, Master::Remainder);
    let half = Options { params: bf16, grads: bf16, ..none };
    let adamw = |options| bytes_moved::<AdamW>(&[true, true, false], &options, 1);
    for (bytes, options) in [
        (28, none),
        // Gradients are read once more and written.
        (28 + 4 + 4, pipeline),
        (28 + 8, Options { ema, ..none }),
        (28 + 4, Options { norms: true, ..none }),
        (28 - 16 + 8, Options { states: bf16, ..none }),
        (4 + 2 + 16 + 8, half),
        (4 + 2 + 16 + 4, Options { master: remainder, ..half }),
        (4 + 2 + 8, Options { master: Master::None, states: bf16, ..half }),
    ] {
        assert_eq!(adamw(options), bytes, "{options:?}");
    }
    assert_eq!(bytes_moved::<Lamb>(&[true, true], &pipeline, 1), 36 + 16);
}

/// The README's table of formats says what the code does.
#[test]
fn bytes_of_the_readme() {
    let readme = include_str!("../../README.md");
    let (_, table) = readme.split_once("| bytes of state | bytes moved |\n").unwrap();
    let format = |name: &str| Format::ALL.into_iter().find(|format| format.name() == name).unwrap();
    let mut rows = 0;
    for line in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let master = match cells[3] {
            "" | "f32" => Master::F32,
            "remainder" => Master::Remainder,
            _ => Master::None,
        };
        let [params, grads, states] = [cells[0], cells[1], cells[2]].map(format);
        let options = Options { params, grads, states, master, ..Options::default() };
        let (state, moved) = bytes_of::<AdamW>(&[true, true, false], &options);
        assert_eq!(cells[4..], [format!("{state} B"), format!("{moved} B")], "{line}");
        rows += 1;
    }
    assert_eq!(rows, 9);
}

/// Bytes a parameter of state and of what a step moves.
fn bytes_of<R: Rule>(kept: &[bool], options: &Options) -> (f64, f64) {
    // Of many, so that blocks are whole.
    const MANY: u64 = 1 << 20;
    let moved = bytes_moved::<R>(kept, options, MANY) as f64 / MANY as f64;
    // What is written and is not the caller's.
    let state = (moved - (2 * options.params.bytes() + options.grads.bytes()) as f64) / 2.0;
    (state, moved)
}

/// The table of all formats is what the code computes. `WGPU_OPTIM_WRITE=1 cargo test --test it formats_of_the_documentation` writes it.
#[test]
fn formats_of_the_documentation() {
    let mut text = String::from(
        "# Bytes of every combination of formats

Bytes a parameter: of state, with what is kept of the parameters, and after the slash of what a step reads and writes. For rules that keep one slot (SGD with momentum, Lion, AdaGrad), two (Adam and most of its
family), three (with AMSGrad) and four (Adan). Averages of the weights (8 bytes moved, 4 of state), looking at the gradients first and zeroing them (a gradient's bytes each), and the first phase of LAMB and LARS come on top:
`Layout::bytes_moved` counts them. The table is computed by the code that it describes.

| parameters | kept of them | gradients | state | 1 slot | 2 slots | 3 slots | 4 slots |
| --- | --- | --- | --- | --- | --- | --- | --- |
",
    );
    for (params, grads, states, master) in every_format() {
        let options = Options { params, grads, states, master, ..Options::default() };
        let kept = match master {
            _ if params == Format::F32 => "",
            Master::F32 => "f32",
            Master::Remainder => "remainder",
            _ => "none",
        };
        let names = [params, grads, states].map(Format::name);
        let _ = write!(text, "| {} | {kept} | {} | {} |", names[0], names[1], names[2]);
        for slots in 1..=4 {
            let (state, moved) = bytes_of::<Adan>(&[1, 2, 3, 4].map(|n| n <= slots), &options);
            let _ = write!(text, " {state} / {moved} |");
        }
        text.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md");
    if std::env::var_os("WGPU_OPTIM_WRITE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap();
    for (line, (found, want)) in found.lines().zip(text.lines()).enumerate() {
        assert_eq!(found, want, "docs/formats.md, line {}", line + 1);
    }
    assert_eq!(found.lines().count(), text.lines().count());
}

/// A rule is complete with its shader, its source, its documentation, a golden run and its row in the README. That it has a benchmark and cases to check,
/// the compiler sees to; that `optim verify` knows it and that every option of it has a golden run, the program's tests.
#[test]
fn every_rule_is_complete() {
    for_each_rule!(files);
}
