//! The files of `shaders/`: each is in a kernel, and its placeholders are replaced.

use super::*;
use std::collections::BTreeSet;
use std::path::Path;

/// The placeholders for names in templates.
const PLACEHOLDERS: [&str; 7] = ["SLOT", "SIDE", "RAW", "FORMAT", "KEEP", "NTH", "ORDINAL"];

/// Placeholders are replaced, and every file of `shaders/` is in a kernel.
#[test]
fn every_file_is_used_and_every_placeholder_replaced() {
    let mut used = BTreeSet::new();
    let mut look = |composed: Composed| {
        for part in &composed.parts {
            let words = part.text.split(|c: char| !c.is_ascii_alphanumeric());
            let left: Vec<_> = words.filter(|word| PLACEHOLDERS.contains(word)).collect();
            assert!(left.is_empty(), "{left:?} in {}", part.name);
            used.insert(part.name.to_string());
        }
    };
    for spec in specs() {
        let keys = keys(&spec);
        for key in [&keys[0], &keys[keys.len() - 1]] {
            look(update(&spec, key));
            look(layer_norms_of(&spec, key));
            if spec.is_layer_wise() {
                FoldBy::ALL.into_iter().for_each(|by| look(trust_ratios(&spec, key, by)));
            }
        }
    }
    let adamw = spec(AdamW::default());
    for Options { params, grads, states, master, .. } in every_format() {
        for (fused, stochastic) in fusions().into_iter().zip([false, true].into_iter().cycle()) {
            let key = keys(&adamw).swap_remove(usize::from(stochastic) * 40);
            let storage = Storage { params, grads, states, master, stochastic };
            let fused = Fused { key: stochastic, ..fused };
            for access in [Access::Vectors, Access::Elements] {
                let aligned = access == Access::Vectors;
                let table_layout = TableLayout { access, aligned, by_tensor: stochastic, ..key.table_layout };
                look(update(&adamw, &KernelKey { fused, storage, table_layout, ..key.clone() }));
            }
            look(reduce(&key.table_layout, grads));
        }
    }
    let options = Options { report: true, ..Options::default() };
    look(control(&options, &candidate_of(&adamw, &Fused::of(&options)), 1));
    for fold in [Fold::Groups, Fold::All] {
        FoldBy::ALL.into_iter().for_each(|by| look(crate::gpu::kernel::fold(fold, by)));
    }
    let files = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"), "");
    let unused: Vec<_> = files.iter().filter(|file| !used.contains(*file)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

fn layer_norms_of(spec: &RuleSpec, key: &KernelKey) -> Composed {
    if spec.is_layer_wise() { layer_norms(spec, &key.for_layer_norms()) } else { update(spec, key) }
}

/// The files of a folder, as kernels name them.
fn files(folder: &Path, prefix: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            files.extend(self::files(&entry.path(), &format!("{name}/")));
        } else if name.ends_with(".wgsl") {
            files.push(name);
        }
    }
    files
}
