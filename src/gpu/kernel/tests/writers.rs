//! Kernels in the languages of Metal and DirectX, and for compilers outside of this crate.

use super::*;
use naga::Module;
use naga::back::{hlsl, msl};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The folder that the chosen kernels are written to, as WGSL and HLSL: `cargo xtask compilers` sets it.
const FOLDER_VARIABLE: &str = "WGPU_OPTIM_KERNELS";

/// The kernels for other compilers, each text once. They are a selection of the combinations that this module
/// validates, with each text of each file among them.
fn chosen() -> Vec<(String, Composed)> {
    let mut chosen = Vec::new();
    for spec in specs() {
        for key in plain_keys(&spec) {
            chosen.push((spec.name, update(&spec, &key)));
            if spec.is_layer_wise() {
                let groups = KernelKey { scalars_space: Space::Uniform, ..key };
                chosen.push((spec.name, layer_norms(&spec, &groups.for_layer_norms())));
                chosen.extend(FoldBy::ALL.map(|by| (spec.name, trust_ratios(&spec, &groups, by))));
            }
        }
    }
    // The rule with the most slots, and the rule with a phase of its own. No rule knows a format.
    chosen.extend(formats(&spec(Adan::default())).map(|kernel| ("formats", kernel)));
    chosen.extend(first_phases(&spec(Lamb::default())).map(|kernel| ("formats", kernel)));
    chosen.extend(options().map(|kernel| ("options", kernel)));
    chosen.extend(other_stages().map(|kernel| ("stages", kernel)));
    let mut texts = BTreeMap::new();
    for (what, kernel) in chosen {
        texts.entry(kernel.wgsl()).or_insert((what, kernel));
    }
    let named = texts.into_values().enumerate();
    named.map(|(n, (what, kernel))| (format!("{what}-{n}-{}", kernel.entry_point), kernel)).collect()
}

/// One group, two groups, and vectors that two groups share, on both targets.
fn plain_keys(spec: &RuleSpec) -> Vec<KernelKey> {
    let keys = whole_keys(spec).into_iter().filter(|key| {
        let TableLayout { access, aligned, space, .. } = key.table_layout;
        let (one, two) = (key.groups == 1 && key.single && aligned, key.groups == 4 && !key.single);
        access == Access::Vectors && space == Space::Uniform && (one || two)
    });
    keys.map(|key| KernelKey { groups: key.groups.min(2), ..key }).collect()
}

/// The keys that keep all slots.
fn whole_keys(spec: &RuleSpec) -> Vec<KernelKey> {
    keys(spec).into_iter().filter(|key| !key.kept.contains(&false)).collect()
}

/// Every format in every place, with both accesses and both roundings.
fn formats(spec: &RuleSpec) -> impl Iterator<Item = Composed> {
    storages(spec).map(|key| update(spec, &key))
}

/// The first phase of a layer-wise rule in every format.
fn first_phases(spec: &RuleSpec) -> impl Iterator<Item = Composed> {
    storages(spec).map(|key| layer_norms(spec, &key.for_layer_norms()))
}

fn storages(spec: &RuleSpec) -> impl Iterator<Item = KernelKey> {
    let key = plain_keys(spec).into_iter().find(|key| !key.table_layout.aligned).unwrap();
    let spec = *spec;
    let ways = [(Access::Vectors, false), (Access::Elements, true)];
    every_format().into_iter().zip(Target::ALL.into_iter().cycle()).flat_map(move |(options, target)| {
        let key = key.clone();
        ways.map(move |(access, stochastic)| {
            let Options { params, grads, states, master, .. } = options;
            let storage = Storage { params, grads, states, master, stochastic };
            let table_layout = TableLayout { access, target, by_tensor: stochastic, ..key.table_layout };
            let fused = Fused { key: stochastic, ..Fused::default() };
            KernelKey { storage, table_layout, fused, candidate: candidate_of(&spec, &fused), ..key.clone() }
        })
    })
}

/// All options around a rule, combined in turn with accesses, few and many groups, and tables in both spaces.
fn options() -> impl Iterator<Item = Composed> {
    let adamw = spec(AdamW::default());
    let keys: Vec<_> = whole_keys(&adamw).into_iter().filter(|key| key.writable_gradients).collect();
    fusions().into_iter().zip(keys.into_iter().cycle()).map(move |(fused, key)| {
        let target = Target::ALL[usize::from(fused.norms)];
        let table_layout = TableLayout { target, ..key.table_layout };
        update(&adamw, &KernelKey { fused, table_layout, candidate: candidate_of(&adamw, &fused), ..key })
    })
}

/// Scans, sums and the decision.
fn other_stages() -> impl Iterator<Item = Composed> {
    let adamw = spec(AdamW::default());
    let keys = whole_keys(&adamw).into_iter().zip(Format::TENSORS.into_iter().cycle());
    let scans = keys.map(|(key, format)| reduce(&key.table_layout, format));
    let folds = [Fold::Groups, Fold::All].into_iter().flat_map(|of| FoldBy::ALL.map(|by| fold(of, by)));
    let clips = [None, Some(Clip::GlobalNorm(1.0)), Some(Clip::GroupNorm(1.0)), Some(Clip::Value(1.0))];
    let decisions = clips.into_iter().flat_map(move |clip| {
        [None, Some(LossScale::default())].map(|loss_scale| {
            let options = Options { clip, loss_scale, skip_nonfinite: true, ..Options::default() };
            control(&options, &candidate_of(&adamw, &Fused::of(&options)), 7)
        })
    });
    scans.chain(folds).chain(decisions).collect::<Vec<_>>().into_iter()
}

/// The kernel in Metal's language, as wgpu's backend writes it; `checked` for a user-defined rule.
fn metal(module: &Module, info: &ModuleInfo, checked: bool) -> String {
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let options = msl::Options {
        lang_version: (2, 4),
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: policy,
        },
        force_loop_bounding: checked,
        ..msl::Options::default()
    };
    let (text, written) =
        msl::write_string(module, info, &options, &msl::PipelineOptions::default()).unwrap();
    written.entry_point_names.into_iter().for_each(|name| drop(name.unwrap()));
    text
}

/// The kernel in HLSL, as wgpu's DirectX backend writes it, in the shader model for DXC. The first line names
/// the entry point, which differs if WGSL's name is a word of HLSL.
fn direct_x(module: &Module, info: &ModuleInfo, checked: bool) -> String {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        restrict_indexing: checked,
        force_loop_bounding: checked,
        ..hlsl::Options::default()
    };
    let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
    let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).unwrap();
    let [Ok(name)] = &written.entry_point_names[..] else { panic!("{written:?}") };
    format!("// {name}\n{text}")
}

/// Kernels are written for Metal and DirectX, with and without wgpu's checks. Kernels without checks go to
/// the folder for other compilers, if it is set.
#[test]
fn kernels_are_written_in_other_languages() {
    let folder = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
    let kernels = chosen();
    for (name, kernel) in &kernels {
        let text = kernel.wgsl();
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        let info = validator.validate(&module).unwrap();
        assert!(metal(&module, &info, true).contains("kernel void"), "{name}");
        assert!(direct_x(&module, &info, true).contains("[numthreads("), "{name}");
        metal(&module, &info, false);
        let hlsl = direct_x(&module, &info, false);
        if let Some(folder) = &folder {
            std::fs::write(folder.join(format!("{name}.wgsl")), &text).unwrap();
            std::fs::write(folder.join(format!("{name}.hlsl")), hlsl).unwrap();
        }
    }
    println!("{} kernels", kernels.len());
}
