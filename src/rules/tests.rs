//! Tests that every rule is complete.

use super::*;
use crate::bytes::bytes_moved;
use crate::options::Options;
use std::fs::{read_dir, read_to_string};

/// The rule that owns a rule's shader text: itself or another rule.
fn owner_of_text(rule: &RuleSpec) -> &'static str {
    match rule.name {
        "adamw" => "adam",
        name => name,
    }
}

/// A rule is complete with its shader, its source, its documentation, a golden run and its row in the README.
///
/// The compiler requires a benchmark and cases to check; tests of the program require golden runs of every
/// option.
#[test]
fn every_rule_is_complete() {
    let root = env!("CARGO_MANIFEST_DIR");
    for rule in AnyRule::all() {
        let (name, dynamic) = (rule.name(), DynRule::from(rule));
        let spec = *dynamic.spec();
        let owner = owner_of_text(&spec);
        let shader = read_to_string(format!("{root}/shaders/rules/{owner}.wgsl")).unwrap();
        assert_eq!(shader, spec.wgsl, "{name}");
        let source = read_to_string(format!("{root}/src/rules/{name}.rs")).unwrap();
        for part in ["```text", "eviation", "efaults", "State: ", "MAX_ULPS", "```\n", "/// Reference: "] {
            assert!(source.contains(part), "the documentation of {name} has no {part:?}");
        }
        assert!(source.contains("compiled_here!();"), "{name} is compiled again in every crate that uses it");
        let golden = read_dir(format!("{root}/tests/golden")).unwrap();
        let prefix = format!("{name}-");
        assert!(
            golden.flatten().any(|f| f.file_name().to_string_lossy().starts_with(&prefix)),
            "no golden run of {name}"
        );
        let readme = read_to_string(format!("{root}/README.md")).unwrap();
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("README.md has no row for {name}"));
        let budget = format!("| {} ulp |", spec.max_ulps.unwrap());
        assert!(row.ends_with(&budget), "{row}: not {budget}");
        // State and traffic of the defaults, and of a configuration that keeps all slots.
        let all = vec![true; spec.slots.len()];
        let kept: Vec<_> = (0..all.len()).map(|slot| dynamic.keeps_slot(slot)).collect();
        let cells: Vec<_> = row.split(" | ").collect();
        let state = |kept: &[bool]| 4 * kept.iter().filter(|&&kept| kept).count() as u64;
        let moved = |kept: &[bool]| bytes_moved(&spec, kept, &Options::default(), 1) as u64;
        for (cell, bytes) in
            [(cells[2], [state(&kept), state(&all)]), (cells[3], [moved(&kept), moved(&all)])]
        {
            assert!(cell.starts_with(&format!("{} B", bytes[0])), "{row}: not {} B", bytes[0]);
            assert!(cell.ends_with(&format!("{} B", bytes[1])), "{row}: not {} B", bytes[1]);
        }
    }
    // Every shader belongs to a rule.
    let shaders = read_dir(format!("{root}/shaders/rules")).unwrap().flatten();
    let mut shaders: Vec<_> = shaders.map(|file| file.file_name().into_string().unwrap()).collect();
    let owners = AnyRule::all().into_iter().map(|rule| owner_of_text(DynRule::from(rule).spec()));
    let mut owners: Vec<_> = owners.map(|owner| format!("{owner}.wgsl")).collect();
    shaders.sort();
    owners.sort();
    owners.dedup();
    assert_eq!(shaders, owners);
}

/// The slots that a layer-wise rule's `direction` reads in WGSL are those that the count of bytes assumes.
#[test]
fn direction_slots_are_those_of_the_shader() {
    let mut layer_wise = 0;
    for rule in AnyRule::all() {
        let spec = *DynRule::from(rule).spec();
        let direction = spec.wgsl.split_once("fn direction(").map(|(_, rest)| rest);
        assert_eq!(direction.is_some(), spec.is_layer_wise(), "{}", spec.name);
        let Some(direction) = direction else {
            assert!(spec.direction_slots.is_empty(), "{}", spec.name);
            continue;
        };
        let (body, _) = direction.split_once("\n}").unwrap();
        let reads = |slot: &&str| body.contains(&format!("read_{slot}("));
        let read: Vec<_> = spec.slots.iter().copied().filter(reads).collect();
        assert_eq!(spec.direction_slots, read, "{}", spec.name);
        layer_wise += 1;
    }
    assert_eq!(layer_wise, 2);
}

/// The loops of built-in rules rely on it: an update leaves a slot that is not kept as it is.
#[test]
fn updates_leave_slots_that_are_not_kept() {
    let mut dropped = 0;
    for rule in AnyRule::all() {
        let rule = DynRule::from(rule);
        let (spec, mut carry) = (*rule.spec(), 0.0);
        let loops = spec.cpu().unwrap();
        let kept: Vec<_> = (0..spec.slots.len()).map(|slot| rule.keeps_slot(slot)).collect();
        for t in 1..4 {
            let mut exact = vec![0.0; spec.scalars.len()];
            rule.scalars(None, &kept, 0.1, t, &mut carry, &mut exact).ok().unwrap();
            for g in [0.0, 1.0, -3.0, 1e30, f64::INFINITY, f64::NAN] {
                let mut state = vec![[0.0]; spec.slots.len()];
                let mut slots: Vec<&mut [f64]> = state.iter_mut().map(|slot| &mut slot[..]).collect();
                (loops.exact.update)(&exact, &mut [2.0], &[g], &mut slots);
                for (slot, value) in state.iter().enumerate().filter(|&(slot, _)| !kept[slot]) {
                    assert_eq!(value[0].to_bits(), 0, "{} {} {g}", spec.name, spec.slots[slot]);
                    dropped += 1;
                }
            }
        }
    }
    assert!(dropped >= 5 * 3 * 6, "{dropped}");
}
