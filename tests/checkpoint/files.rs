//! Written files: their form, their names, and refused saves.

use crate::common::{Directory, Random, Saves, bits, layout, on_cpu};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use wgpu_optim::checkpoint::{self, Cpu, Error, Load, Metadata, Reader, Save};
use wgpu_optim::{AdamW, Group, Layout, NAdam, Rule, Schedule, Sgd, cpu};

#[test]
fn a_file_is_read_by_the_library_of_the_format() {
    let directory = Directory::new("form");
    let path = directory.file("run.safetensors");
    let mut run = on_cpu(layout());
    let metadata = BTreeMap::from([("epoch".to_owned(), "3".to_owned())]);
    run.steps(3).save(&path, &Save { metadata: metadata.clone(), ..Save::default() }).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let want = ["exp_avg", "exp_avg_sq", "param"].map(|slot| ["b", "v", "w"].map(|t| format!("{slot}/{t}")));
    assert_eq!(names, want.concat());
    let tensor = file.tensor("exp_avg/w").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[3, 5][..]));
    let values = run.state("exp_avg", "w");
    assert_eq!(tensor.data(), bytemuck::cast_slice::<f32, u8>(&values));
    // The same state makes the same file.
    let again = directory.file("again.safetensors");
    run.save(&again, &Save { metadata: metadata.clone(), ..Save::default() }).unwrap();
    assert_eq!(fs::read(again).unwrap(), bytes);
    let loaded = on_cpu(layout()).load(&path, &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.taken, loaded.metadata), (3, 3, metadata));
    assert_eq!(directory.names(), ["again.safetensors", "run.safetensors"]);
}

#[test]
fn the_record_says_everything() {
    let directory = Directory::new("record");
    let path = directory.file("run.safetensors");
    let nadam = NAdam { weight_decay: 0.25, ..NAdam::default() };
    let body =
        Group::new("body", nadam).lr_factor(wgpu_optim::schedule::cosine(0.1, 0.0, 10)).tensor("w", [2]);
    let head = Group::new("head", nadam).lr_factor(|_: u64| 0.5).tensor_at("h", [3], 7);
    let mut run = on_cpu(Layout::new([body, head]).unwrap());
    run.steps(4).save(&path, &Save::default()).unwrap();
    let record = Metadata::read(&Reader::open(&path).unwrap()).unwrap();
    assert_eq!((record.rule.as_str(), record.steps, record.taken), (NAdam::NAME, 4, 4));
    assert_eq!(record.writer, concat!("wgpu-optim ", env!("CARGO_PKG_VERSION")));
    let [body, head] = &record.groups.0[..] else { panic!() };
    assert_eq!(serde_json::from_str::<NAdam>(body.hyperparameters.text()).unwrap(), nadam);
    let factor: Schedule = serde_json::from_str(body.lr_factor.as_ref().unwrap().text()).unwrap();
    assert_eq!(factor, wgpu_optim::schedule::cosine(0.1, 0.0, 10));
    assert!(head.lr_factor.is_none(), "a function cannot be saved");
    assert!(0.0 < body.carry && body.carry < 1.0, "the product of the momenta");
    assert_eq!(head.tensors.iter().collect::<Vec<_>>(), [("h", 7)]);
}

#[test]
fn names_say_what_is_there() {
    let directory = Directory::new("names");
    let mut run = on_cpu(layout());
    let sharded = Save { shard_bytes: Some(96), ..Save::default() };
    for (name, save) in [
        ("a.safetensors", &sharded),
        (".safetensors.index.json", &sharded),
        ("a.index.json", &Save::default()),
    ] {
        let error = run.save(&directory.file(name), save).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name}: {error}");
    }
    for key in ["wgpu_optim", "total_size"] {
        let metadata = BTreeMap::from([(key.to_owned(), String::new())]);
        let error =
            run.save(&directory.file("a.safetensors"), &Save { metadata, ..Save::default() }).unwrap_err();
        assert!(matches!(error, Error::Key { .. }), "{key}: {error}");
    }
    assert!(directory.names().is_empty());
    let error = run.save(&directory.file("no/such.safetensors"), &Save::default()).unwrap_err();
    assert!(matches!(&error, Error::Io { what: "create", .. }), "{error}");
    let error = run.load(&directory.file("none.safetensors"), &Load::default()).unwrap_err();
    assert!(matches!(&error, Error::Io { what: "open", .. }), "{error}");
}

#[test]
fn a_rule_without_state_has_a_file_too() {
    let directory = Directory::new("stateless");
    let path = directory.file("sgd.safetensors");
    let layout = || Layout::new([Group::new("all", Sgd::default()).tensor("w", [2])]).unwrap();
    let mut optimizer = cpu::Optimizer::new(layout()).unwrap();
    optimizer.step(cpu::Tensors::flat(&mut [0.0; 2], &[1.0; 2]), 0.1).unwrap();
    checkpoint::save(&mut Cpu::new(&mut optimizer), &path, &Save::default()).unwrap();
    let mut fresh = cpu::Optimizer::new(layout()).unwrap();
    checkpoint::load(&mut Cpu::new(&mut fresh), &path, &Load::default()).unwrap();
    assert_eq!(fresh.steps(), 1);
}

#[test]
fn progress_counts_to_the_end() {
    let directory = Directory::new("progress");
    let path = directory.file("run.safetensors");
    let mut run = on_cpu(layout());
    let mut seen = Vec::new();
    checkpoint::save_with_progress(&mut run.engine(), &path, &Save::default(), |done, total| {
        seen.push((done, total));
    })
    .unwrap();
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, 288), (288, 288)));
    assert!(seen.is_sorted());
    seen.clear();
    checkpoint::load_with_progress(&mut run.engine(), &path, &Load::default(), |done, total| {
        seen.push((done, total));
    })
    .unwrap();
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, 288), (288, 288)));
}

/// A tensor is passed in parts, and each part is reported.
#[test]
fn progress_is_seen_within_a_tensor() {
    const MOST: u64 = 8 << 20;
    let directory = Directory::new("within");
    let path = directory.file("run.safetensors");
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [3_000_000])]).unwrap();
    let mut run = on_cpu(layout());
    run.steps(1);
    let mut seen = Vec::new();
    checkpoint::save_with_progress(&mut run.engine(), &path, &Save::default(), |done, _| seen.push(done))
        .unwrap();
    let mut loaded = on_cpu(layout());
    checkpoint::load_with_progress(&mut loaded.engine(), &path, &Load::default(), |done, _| seen.push(done))
        .unwrap();
    assert!(seen.windows(2).all(|pair| pair[1] < pair[0] + MOST), "{seen:?}");
    assert!(bits(&loaded) == bits(&run));
}

/// A file that gets shorter while it is read: the optimizer has the part that was read, and the error says
/// so.
#[test]
fn a_file_that_shrinks_leaves_torn_state() {
    let directory = Directory::new("shrinks");
    let path = directory.file("run.safetensors");
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [500_000])]).unwrap();
    let mut run = on_cpu(layout());
    run.steps(1).save(&path, &Save::default()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let mut loaded = on_cpu(layout());
    let before = bits(&loaded);
    let cut = |done, _| {
        if done > 0 {
            file.set_len(100).unwrap();
        }
    };
    let error =
        checkpoint::load_with_progress(&mut loaded.engine(), &path, &Load::default(), cut).unwrap_err();
    let Error::Torn(error) = error else { panic!("{error}") };
    assert!(matches!(*error, Error::Io { what: "read", .. }), "{error}");
    assert!(bits(&loaded) != before);
    assert_eq!(loaded.optimizer.steps(), 0, "it has not gone on");
    // As the error says: a whole file makes it whole.
    run.save(&path, &Save::default()).unwrap();
    loaded.load(&path, &Load::default()).unwrap();
    assert!(bits(&loaded) == bits(&run));
}

proptest! {
    /// Any layout comes back bit for bit, also onto one with its tensors in another order and other places.
    #[test]
    fn round_trips(
        lens in prop::collection::vec((1u64..200, 0u64..9, 0usize..3), 1..12),
        steps in 0usize..4,
        shard in prop::option::of(1u64..2_000),
        reorder: u64,
    ) {
        let build = |order: &[usize], gaps: bool| {
            let rule =
                |g| AdamW { beta1: 0.8 + 0.05 * f64::from(g), amsgrad: g == 2, ..AdamW::default() };
            let mut groups: Vec<_> = (0..3).map(|g| Group::new(format!("g{g}"), rule(g))).collect();
            let mut offset = 0;
            for &i in order {
                let (len, gap, group) = lens[i];
                offset += if gaps { gap } else { 0 };
                groups[group] = groups[group].clone().tensor_at(format!("t/{i}"), [len], offset);
                offset += len;
            }
            let used = |g: &usize| lens.iter().any(|(_, _, group)| group == g);
            Layout::new((0..3).filter(used).map(|g| groups[g].clone())).unwrap()
        };
        let order: Vec<_> = (0..lens.len()).collect();
        let mut shuffled = order.clone();
        let mut random = Random::new(reorder);
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, random.below(i as u64 + 1) as usize);
        }
        let directory = Directory::new(&format!("round-{}", random.bits()));
        let name = if shard.is_some() { "run.safetensors.index.json" } else { "run.safetensors" };
        let path = directory.file(name);
        let mut run = on_cpu(build(&order, true));
        run.steps(steps).save(&path, &Save { shard_bytes: shard, ..Save::default() }).unwrap();
        let mut same = on_cpu(build(&order, true));
        same.load(&path, &Load::default()).unwrap();
        let mut other = on_cpu(build(&shuffled, false));
        other.load(&path, &Load::default()).unwrap();
        prop_assert_eq!(other.optimizer.steps(), steps as u64);
        for tensor in run.optimizer.layout().tensors() {
            for slot in ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] {
                let want = run.state(slot, &tensor.name);
                prop_assert_eq!(&same.state(slot, &tensor.name), &want);
                prop_assert_eq!(&other.state(slot, &tensor.name), &want);
            }
            let there = other.optimizer.layout().tensor(&tensor.name).unwrap();
            prop_assert_eq!(&other.params()[there.range()], &run.params()[tensor.range()]);
        }
    }
}

#[test]
fn elements_that_are_not_there_are_errors() {
    let directory = Directory::new("elements");
    let path = directory.file("run.safetensors");
    on_cpu(layout()).save(&path, &Save::default()).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.plain_numbers("param/w", 13, 15).unwrap(), Some(vec![0.5; 2]));
    for (first, last) in [(0, 16), (0, u64::MAX), (u64::MAX, u64::MAX), (2, 1)] {
        for result in
            [reader.plain_numbers("param/w", first, last), reader.numbers("param", "w", 0, first, last)]
        {
            assert!(matches!(result, Err(Error::Malformed { .. })), "{first}..{last}: {result:?}");
        }
    }
}

/// A checkpoint that no load would read is refused before a byte is written, and the old file stays.
#[test]
fn what_cannot_be_read_is_not_written() {
    fn refused(what: &str, layout: Layout, save: &Save) {
        let directory = Directory::new("unreadable");
        let sharded = save.shard_bytes.is_some();
        let path = directory.file(if sharded { "run.safetensors.index.json" } else { "run.safetensors" });
        let mut run = on_cpu(layout);
        let error = run.save(&path, save).expect_err(what);
        assert!(matches!(error, Error::Malformed { .. }), "{what}: {error}");
        assert!(directory.names().is_empty(), "{what}");
    }
    let sharded = Save { shard_bytes: Some(1), ..Save::default() };
    let group = || Group::new("all", AdamW::default());
    let many = (0..200).fold(group(), |group, i| group.tensor(format!("{i}"), [1]));
    refused("shards", Layout::new([many]).unwrap(), &sharded);
    refused("dimensions", Layout::new([group().tensor("w", vec![1; 33])]).unwrap(), &Save::default());
    // With the record, and of several files with their size.
    let metadata = |keys: usize| (0..keys).map(|i| (i.to_string(), String::new())).collect();
    refused("keys", layout(), &Save { metadata: metadata(1_024), ..Save::default() });
    refused("keys", layout(), &Save { metadata: metadata(1_023), ..sharded.clone() });
    let factor = (0..100).fold(Schedule::from(1.0), |factor, _| factor.warmup(1));
    let nested = group().tensor("w", [1]).lr_factor(factor);
    refused("schedules", Layout::new([nested]).unwrap(), &Save::default());
}

#[test]
fn parameters_by_name_are_those_of_the_layout() {
    let directory = Directory::new("by-name");
    let path = directory.file("run.safetensors");
    let [mut w, mut v, mut b, mut more] = [15, 7, 2, 15].map(|len| vec![0.0f32; len]);
    let mut optimizer = cpu::Optimizer::new(layout()).unwrap();
    for name in ["w", "x"] {
        let each = [("w", &mut w), ("v", &mut v), ("b", &mut b), (name, &mut more)];
        let mut engine = Cpu::new(&mut optimizer).each_parameters(each.map(|(n, p)| (n, &mut p[..])));
        let error = checkpoint::save(&mut engine, &path, &Save::default()).unwrap_err();
        let Error::Bind(error) = error else { panic!("{error}") };
        let twice = matches!(error, wgpu_optim::BindError::DuplicateTensor { .. });
        let unknown = matches!(error, wgpu_optim::BindError::UnknownTensor { .. });
        assert!(if name == "w" { twice } else { unknown }, "{name}: {error}");
    }
}
