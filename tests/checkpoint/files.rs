//! What is written: its form, its names, and how it is split.

use crate::common::{Directory, Random, Run, assert_same_checkpoint, layout, quiet, values};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use wgpu_optim::checkpoint::{self, Counters, Cpu, Engine, Error, Load, Part, Plane, Reader, Record, Save};
use wgpu_optim::{AdamW, Format, Group, Layout, Master, NAdam, Options, Rule, Schedule, Sgd, cpu};

#[test]
fn a_file_is_read_by_the_library_of_the_format() {
    let directory = Directory::new("form");
    let path = directory.file("run.safetensors");
    let mut run = Run::new(layout());
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
    assert_eq!(tensor.data(), bytemuck::cast_slice::<f32, u8>(values));
    // The same state makes the same file.
    let again = directory.file("again.safetensors");
    run.save(&again, &Save { metadata: metadata.clone(), ..Save::default() }).unwrap();
    assert_eq!(fs::read(again).unwrap(), bytes);
    let loaded = Run::new(layout()).load(&path, &Load::default()).unwrap();
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
    let mut run = Run::new(Layout::new([body, head]).unwrap());
    run.steps(4).save(&path, &Save::default()).unwrap();
    let record = Record::read(&Reader::open(&path).unwrap()).unwrap();
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
fn shards_have_an_index_and_replace_each_other() {
    let directory = Directory::new("shards");
    let path = directory.file("run.safetensors.index.json");
    let mut run = Run::new(layout());
    // Tensors have 8, 28 and 60 bytes, three times.
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    run.steps(2).save(&path, &save).unwrap();
    let shards = |generation: u64, of: usize| {
        (1..=of).map(|i| format!("run-{i:05}-of-{of:05}-{generation}.safetensors")).collect::<Vec<_>>()
    };
    let index = ["run.safetensors.index.json".to_owned()];
    assert_eq!(directory.names(), [&shards(1, 3)[..], &index].concat());
    let text: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(text["metadata"]["total_size"], 3 * 96);
    assert_eq!(text["weight_map"].as_object().unwrap().len(), 9);
    let mut other = Run::new(layout());
    assert_eq!(other.load(&path, &Load::default()).unwrap().steps, 2);
    assert_eq!(other.bits(), run.bits());
    // What saves that were killed have left is gone with the next: files that are not whole, whole ones before their index was, and old ones behind it. Those of others stay.
    let index_before = fs::read(&path).unwrap();
    run.steps(1).save(&path, &save).unwrap();
    let orphans = shards(2, 3);
    let kept: Vec<_> = orphans.iter().map(|name| fs::read(directory.file(name)).unwrap()).collect();
    fs::write(&path, index_before).unwrap();
    for name in shards(1, 3).iter().chain([&".run-00009-of-00009-7.safetensors.partial".to_owned()]) {
        fs::write(directory.file(name), &kept[0]).unwrap();
    }
    let others = [
        ".else.safetensors.partial",
        "run-1-00001-of-00001-2.safetensors",
        "run-1-00009-of-00009.safetensors",
        "run-00001-of-00002.safetensors",
        "run-1-of-2-3.safetensors",
        "run-5-of-5-2024.safetensors",
        "run-00003-of-00002-1.safetensors",
        "run-00000-of-00002-1.safetensors",
        "run-00001-of-00513-1.safetensors",
        "run-00001-of-00002-01.safetensors",
        "run.safetensors",
        "rune-00001-of-00002-1.safetensors",
    ];
    others.iter().for_each(|name| fs::write(directory.file(name), "").unwrap());
    run.save(&path, &Save { shard_bytes: Some(1), ..Save::default() }).unwrap();
    let mut names = [&others.map(str::to_owned)[..], &shards(3, 9), &index].concat();
    names.sort();
    assert_eq!(directory.names(), names);
    assert_eq!(other.load(&path, &Load::default()).unwrap().steps, 3);
    assert_eq!(other.bits(), run.bits());
}

/// Behind the last number there is none: the shards that the index names are not written over.
#[test]
fn the_last_number_is_not_used_twice() {
    let directory = Directory::new("last-number");
    let path = directory.file("run.safetensors.index.json");
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    let mut run = Run::new(layout());
    run.steps(1).save(&path, &save).unwrap();
    let first = directory.names();
    let [end, last] = ["-1.safetensors".to_owned(), format!("-{}.safetensors", u64::MAX)];
    for name in first.iter().filter(|name| name.ends_with(&end)) {
        fs::rename(directory.file(name), directory.file(&name.replace(&end, &last))).unwrap();
    }
    fs::write(&path, fs::read_to_string(&path).unwrap().replace(&end, &last)).unwrap();
    assert_eq!(Run::new(layout()).load(&path, &Load::default()).unwrap().steps, 1);
    run.steps(1).save(&path, &save).unwrap();
    assert_eq!(directory.names(), first);
    assert_eq!(Run::new(layout()).load(&path, &Load::default()).unwrap().steps, 2);
}

/// In what an engine is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    TooLittle,
    TooMuch,
    /// Planes that have no tensors, and bytes of them.
    NoTensors,
    OtherTensor,
}

struct Lying<'a>(Cpu<'a, AdamW>, Lie);

impl Engine for Lying<'_> {
    type Rule = AdamW;
    fn layout(&self) -> &Layout<AdamW> {
        self.0.layout()
    }
    fn options(&self) -> &Options {
        self.0.options()
    }
    fn planes(&self) -> Vec<Plane> {
        let mut planes = self.0.planes();
        if self.1 == Lie::NoTensors {
            planes.iter_mut().for_each(|plane| plane.tensors.clear());
        }
        planes
    }
    fn check(&self, writing: bool) -> Result<(), Error> {
        self.0.check(writing)
    }
    fn counters(&mut self) -> Result<Counters, Error> {
        self.0.counters()
    }
    fn read(&mut self, plane: usize, sink: &mut checkpoint::Sink<'_>) -> Result<(), Error> {
        let lie = self.1;
        self.0.read(plane, &mut |part, bytes| {
            sink(part, if lie == Lie::TooLittle { &bytes[4..] } else { bytes })?;
            if lie == Lie::TooMuch { sink(part, bytes) } else { Ok(()) }
        })
    }
    fn write(&mut self, plane: usize, source: &mut checkpoint::Source<'_>) -> Result<(), Error> {
        let lie = self.1;
        self.0.write(plane, &mut |mut part, bytes| match lie {
            Lie::TooLittle => source(part, &mut bytes[4..]),
            Lie::OtherTensor => source(Part { tensor: 99, ..part }, bytes),
            Lie::TooMuch | Lie::NoTensors => {
                part.start = u64::MAX;
                source(part, bytes)
            }
        })
    }
    fn restore(&mut self, counters: &Counters) -> Result<(), Error> {
        self.0.restore(counters)
    }
}

/// Anyone may write an engine: what is wrong with it is an error, and the file from before is whole.
#[test]
fn an_engine_is_not_believed() {
    let directory = Directory::new("lying");
    for (name, shard_bytes) in [("run.safetensors", None), ("run.safetensors.index.json", Some(96))] {
        let path = directory.file(name);
        let save = Save { shard_bytes, ..Save::default() };
        let mut run = Run::new(layout());
        run.steps(1).save(&path, &save).unwrap();
        let (names, bits) = (directory.names(), run.bits());
        for lie in [Lie::TooLittle, Lie::TooMuch, Lie::NoTensors, Lie::OtherTensor] {
            let mut other = Run::new(layout());
            if lie != Lie::OtherTensor {
                let mut engine = Lying(other.engine(), lie);
                let error = checkpoint::save(&mut engine, &path, &save, &mut quiet).unwrap_err();
                assert!(matches!(error, Error::Engine { .. }), "{lie:?}: {error}");
                assert_eq!(directory.names(), names, "{lie:?}");
            }
            if lie != Lie::NoTensors {
                let mut engine = Lying(other.engine(), lie);
                let error = checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet).unwrap_err();
                let Error::Torn(error) = error else { panic!("{lie:?}: {error}") };
                assert!(matches!(*error, Error::Engine { .. }), "{lie:?}: {error}");
            }
            other.load(&path, &Load::default()).unwrap();
            assert_eq!(other.bits(), bits, "{lie:?}");
        }
    }
}

#[test]
fn names_say_what_is_there() {
    let directory = Directory::new("names");
    let mut run = Run::new(layout());
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
    let mut optimizer = cpu::Optimizer::<Sgd>::new(layout()).unwrap();
    optimizer.step(cpu::Tensors::flat(&mut [0.0; 2], &[1.0; 2]), 0.1).unwrap();
    checkpoint::save(&mut Cpu::new(&mut optimizer), &path, &Save::default(), &mut quiet).unwrap();
    let mut fresh = cpu::Optimizer::<Sgd>::new(layout()).unwrap();
    checkpoint::load(&mut Cpu::new(&mut fresh), &path, &Load::default(), &mut quiet).unwrap();
    assert_eq!(fresh.steps(), 1);
}

#[test]
fn progress_counts_to_the_end() {
    let directory = Directory::new("progress");
    let path = directory.file("run.safetensors");
    let mut run = Run::new(layout());
    let mut seen = Vec::new();
    checkpoint::save(&mut run.engine(), &path, &Save::default(), &mut |done, total| seen.push((done, total)))
        .unwrap();
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, 288), (288, 288)));
    assert!(seen.is_sorted());
    seen.clear();
    checkpoint::load(&mut run.engine(), &path, &Load::default(), &mut |done, total| seen.push((done, total)))
        .unwrap();
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, 288), (288, 288)));
}

/// A tensor is handed over in parts, and each is reported.
#[test]
fn progress_is_seen_within_a_tensor() {
    const MOST: u64 = 8 << 20;
    let directory = Directory::new("within");
    let path = directory.file("run.safetensors");
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [3_000_000])]).unwrap();
    let mut run = Run::new(layout());
    run.steps(1);
    let mut seen = Vec::new();
    checkpoint::save(&mut run.engine(), &path, &Save::default(), &mut |done, _| seen.push(done)).unwrap();
    let mut loaded = Run::new(layout());
    checkpoint::load(&mut loaded.engine(), &path, &Load::default(), &mut |done, _| seen.push(done)).unwrap();
    assert!(seen.windows(2).all(|pair| pair[1] < pair[0] + MOST), "{seen:?}");
    assert!(loaded.bits() == run.bits());
}

/// A file that gets shorter while it is read: what has been read of it is in the optimizer, and it is said so.
#[test]
fn a_file_that_shrinks_leaves_torn_state() {
    let directory = Directory::new("shrinks");
    let path = directory.file("run.safetensors");
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [500_000])]).unwrap();
    let mut run = Run::new(layout());
    run.steps(1).save(&path, &Save::default()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let mut loaded = Run::new(layout());
    let before = loaded.bits();
    let mut cut = |done, _| {
        if done > 0 {
            file.set_len(100).unwrap();
        }
    };
    let error = checkpoint::load(&mut loaded.engine(), &path, &Load::default(), &mut cut).unwrap_err();
    let Error::Torn(error) = error else { panic!("{error}") };
    assert!(matches!(*error, Error::Io { what: "read", .. }), "{error}");
    assert!(loaded.bits() != before);
    assert_eq!(loaded.optimizer.steps(), 0, "it has not gone on");
    // As the error says: a whole file makes it whole.
    run.save(&path, &Save::default()).unwrap();
    loaded.load(&path, &Load::default()).unwrap();
    assert!(loaded.bits() == run.bits());
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
            let mut groups: Vec<_> = (0..3)
                .map(|g| Group::new(format!("g{g}"), AdamW { beta1: 0.8 + 0.05 * f64::from(g), amsgrad: g == 2, ..AdamW::default() }))
                .collect();
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
        let mut run = Run::new(build(&order, true));
        run.steps(steps).save(&path, &Save { shard_bytes: shard, ..Save::default() }).unwrap();
        let mut same = Run::new(build(&order, true));
        same.load(&path, &Load::default()).unwrap();
        let mut other = Run::new(build(&shuffled, false));
        other.load(&path, &Load::default()).unwrap();
        prop_assert_eq!(other.optimizer.steps(), steps as u64);
        for tensor in run.optimizer.layout().tensors() {
            for slot in ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] {
                let want = run.state(slot, &tensor.name);
                prop_assert_eq!(same.state(slot, &tensor.name), want);
                prop_assert_eq!(other.state(slot, &tensor.name), want);
            }
            let there = other.optimizer.layout().tensor(&tensor.name).unwrap();
            prop_assert_eq!(&other.params[there.range()], &run.params[tensor.range()]);
        }
    }
}

/// A file that the first version of the form has written is read by this one, and comes out as it was.
#[test]
fn the_first_version_is_read() {
    let directory = Directory::new("fixture");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/v1.safetensors");
    if std::env::var_os("WGPU_OPTIM_WRITE_FIXTURE").is_some() {
        let metadata = BTreeMap::from([("epoch".to_owned(), "3".to_owned())]);
        Run::new(layout()).steps(5).save(&fixture, &Save { metadata, ..Save::default() }).unwrap();
    }
    let mut run = Run::new(layout());
    let loaded = run.load(&fixture, &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.taken, loaded.metadata["epoch"].as_str()), (5, 5, "3"));
    let again = directory.file("again.safetensors");
    run.save(&again, &Save { metadata: loaded.metadata, ..Save::default() }).unwrap();
    assert_eq!(assert_same_checkpoint::<AdamW>(&fixture, &again).len(), 9);
}

/// The products of the momenta in the file.
const CARRIES: [f64; 2] = [0.041173782266795675, 0.003922209101775232];

/// The same of what that one has not: a carry, schedules, masters, state of 2 bytes, steps that were skipped.
#[test]
fn carries_and_schedules_of_the_first_version_are_read() {
    let directory = Directory::new("nadam-fixture");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/v1-nadam.safetensors");
    let nadam = NAdam { momentum_decay: 0.01, weight_decay: 0.1, ..NAdam::default() };
    let rising = wgpu_optim::schedule::cosine(0.5, 0.125, 10).warmup(2);
    let rule = NAdam { beta1: 0.5, ..nadam };
    let groups = [
        Group::new("body", nadam).lr_factor(rising).tensor("w", [3, 5]),
        Group::new("head", rule).lr_factor(0.25).tensor_at("h", [7], 20),
    ];
    let options = Options {
        params: Format::Bf16,
        grads: Format::F32,
        states: Format::Bf16,
        master: Master::F32,
        skip_nonfinite: true,
        ..Options::default()
    };
    let mut optimizer = cpu::Optimizer::with_options(Layout::new(groups).unwrap(), options).unwrap();
    let mut params = vec![Format::Bf16.encode(0.5) as u16; 27];
    if std::env::var_os("WGPU_OPTIM_WRITE_FIXTURE").is_some() {
        for step in 0..5 {
            let mut grads = values(step, 27);
            if step == 3 {
                grads[0] = f32::NAN;
            }
            optimizer.step(cpu::Tensors::flat(&mut params, &grads), 0.01).unwrap();
        }
        let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
        checkpoint::save(&mut engine, &fixture, &Save::default(), &mut quiet).unwrap();
    }
    let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
    let loaded = checkpoint::load(&mut engine, &fixture, &Load::default(), &mut quiet).unwrap();
    assert_eq!((loaded.steps, loaded.taken), (5, 4));
    let carries = engine.counters().unwrap().carries;
    assert_eq!(carries, CARRIES);
    let again = directory.file("again.safetensors");
    checkpoint::save(&mut engine, &again, &Save::default(), &mut quiet).unwrap();
    // Of two tensors the parameters, what is kept of them and two slots.
    assert_eq!(assert_same_checkpoint::<NAdam>(&fixture, &again).len(), 8);
}

#[test]
fn an_index_without_tensors_has_no_shards() {
    let directory = Directory::new("no-tensors");
    let path = directory.file("run.safetensors.index.json");
    let layout = || Layout::new([Group::new("all", Sgd::default()).tensor("w", [2])]).unwrap();
    let mut optimizer = cpu::Optimizer::<Sgd>::new(layout()).unwrap();
    optimizer.step(cpu::Tensors::flat(&mut [0.0; 2], &[1.0; 2]), 0.1).unwrap();
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    checkpoint::save(&mut Cpu::new(&mut optimizer), &path, &save, &mut quiet).unwrap();
    assert_eq!(directory.names(), ["run.safetensors.index.json"]);
    let mut fresh = cpu::Optimizer::<Sgd>::new(layout()).unwrap();
    checkpoint::load(&mut Cpu::new(&mut fresh), &path, &Load::default(), &mut quiet).unwrap();
    assert_eq!(fresh.steps(), 1);
}

#[test]
fn elements_that_are_not_there_are_errors() {
    let directory = Directory::new("elements");
    let path = directory.file("run.safetensors");
    Run::new(layout()).save(&path, &Save::default()).unwrap();
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

/// What no load would read is refused before a byte is written, and the file before it stays.
#[test]
fn what_cannot_be_read_is_not_written() {
    fn refused<R>(what: &str, layout: Layout<R>, save: &Save)
    where
        R: Rule + wgpu_optim::Twin + serde::Serialize + serde::de::DeserializeOwned,
    {
        let directory = Directory::new("unreadable");
        let sharded = save.shard_bytes.is_some();
        let path = directory.file(if sharded { "run.safetensors.index.json" } else { "run.safetensors" });
        let mut run = Run::new(layout);
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
    let mut optimizer = cpu::Optimizer::<AdamW>::new(layout()).unwrap();
    for name in ["w", "x"] {
        let each = [("w", &mut w), ("v", &mut v), ("b", &mut b), (name, &mut more)];
        let mut engine = Cpu::new(&mut optimizer).each_parameters(each.map(|(n, p)| (n, &mut p[..])));
        let error = checkpoint::save(&mut engine, &path, &Save::default(), &mut quiet).unwrap_err();
        let Error::Optimizer(error) = error else { panic!("{error}") };
        let twice = matches!(error, wgpu_optim::Error::Duplicate { .. });
        let unknown = matches!(error, wgpu_optim::Error::Unknown { .. });
        assert!(if name == "w" { twice } else { unknown }, "{name}: {error}");
    }
}
