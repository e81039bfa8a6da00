//! Values that a load takes from a file or ignores, rules that cannot be saved, and state of frozen groups.

use crate::common::{Directory, Saves, bits, layout, mismatches, on_cpu};
use crate::mixed::TAKE;
use cpu_harness::CpuRun;
use std::path::Path;
use wgpu_optim::checkpoint::{self, Cpu, Differing, Error, Extra, Formats, Load, Mismatch, Missing, Save};
use wgpu_optim::float::Float;
use wgpu_optim::rules::{Saved, SgdScalars, SgdState};
use wgpu_optim::{
    AdamW, Clip, CpuRule, DynRule, Format, Group, Lars, Layout, LossScale, Master, Options, Rule, Sgd, cpu,
    schedule,
};

/// Values are those of the file, and the next step computes with them: in the same optimizer too.
#[test]
fn a_run_takes_back_its_values() {
    let directory = Directory::new("back");
    let path = directory.file("run.safetensors");
    let mut run = on_cpu(layout());
    run.steps(2).save(&path, &Save::default()).unwrap();
    let want = bits(run.steps(2));
    run.optimizer.set_rule("decay", AdamW { beta1: 0.5, ..AdamW::default() }).unwrap();
    run.optimizer.set_lr_factor("plain", schedule::linear(1.0, 0.0, 9)).unwrap();
    run.optimizer.freeze("plain").unwrap();
    run.steps(2);
    assert_eq!(mismatches(run.load(&path, &Load::default())).len(), 3);
    run.load(&path, &TAKE).unwrap();
    let groups = run.optimizer.layout().groups();
    assert_eq!(*groups[0].rule(), DynRule::from(AdamW::default()));
    assert_eq!((groups[1].factor(), groups[1].is_frozen()), (&0.5.into(), false));
    assert!(bits(run.steps(2)) == want);
}

/// One tensor of one group.
fn single(rule: impl Into<DynRule>) -> Layout {
    Layout::new([Group::new("all", rule).tensor("w", [4])]).unwrap()
}

fn save(path: &Path, layout: Layout, options: Options) -> Result<(), Error> {
    let mut optimizer = cpu::Optimizer::with_options(layout, options).unwrap();
    checkpoint::save(&mut Cpu::new(&mut optimizer), path, &Save::default())
}

fn load(path: &Path, layout: Layout, options: Options, load: &Load) -> Result<DynRule, Error> {
    let mut optimizer = cpu::Optimizer::with_options(layout, options).unwrap();
    let before = optimizer.layout().groups()[0].rule().clone();
    let loaded = checkpoint::load(&mut Cpu::new(&mut optimizer), path, load);
    let rule = optimizer.layout().groups()[0].rule();
    assert!(loaded.is_ok() || *rule == before, "a load that is refused changes the rule");
    loaded.map(|_| rule.clone())
}

/// There is no memory for the slots of other hyperparameters.
#[test]
fn values_that_need_another_slot_are_refused() {
    let directory = Directory::new("slots");
    let path = directory.file("run.safetensors");
    let amsgrad = AdamW { amsgrad: true, ..AdamW::default() };
    save(&path, single(amsgrad), Options::default()).unwrap();
    let lenient = Load { extra: Extra::Ignore, ..TAKE };
    let found = mismatches(load(&path, single(AdamW::default()), Options::default(), &lenient));
    let [Mismatch::Hyperparameter { group, field, found, expected }] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (&**group, &**field, expected),
        ("all", "hyperparameters", &format!("{:?}", AdamW::default()))
    );
    assert!(found.contains("max_exp_avg_sq"), "{found}");
    // The other way round the slot is there, and the file lacks it.
    save(&path, single(AdamW::default()), Options::default()).unwrap();
    let found = mismatches(load(&path, single(amsgrad), Options::default(), &TAKE));
    assert_eq!(found, [Mismatch::MissingSlot { slot: "max_exp_avg_sq".into(), tensor: "w".into() }]);
    let lenient = Load { missing: Missing::Zero, ..TAKE };
    let rule = load(&path, single(amsgrad), Options::default(), &lenient).unwrap();
    assert_eq!(rule, AdamW::default().into());
}

/// The bound of a clip is taken, and no other kind of clip.
#[test]
fn a_clip_of_another_kind_is_refused() {
    let directory = Directory::new("clip");
    let path = directory.file("run.safetensors");
    let options = |clip| Options { clip, ..Options::default() };
    let clips = [None, Some(Clip::GlobalNorm(2.0)), Some(Clip::GroupNorm(2.0)), Some(Clip::Value(2.0))];
    for saved in clips {
        save(&path, single(AdamW::default()), options(saved)).unwrap();
        for ours in clips {
            let loaded = load(&path, single(AdamW::default()), options(ours), &TAKE);
            if saved == ours {
                loaded.unwrap();
                continue;
            }
            let found = mismatches(loaded);
            assert!(matches!(&found[..], [Mismatch::Option { field, .. }] if field == "clip"), "{found:?}");
        }
    }
}

/// A function of the program is not in a file, so a load cannot take it.
#[test]
fn a_function_is_not_taken() {
    let directory = Directory::new("function");
    let path = directory.file("run.safetensors");
    let function = || {
        let group = Group::new("all", AdamW::default()).lr_factor(|_: u64| 0.5);
        Layout::new([group.tensor("w", [4])]).unwrap()
    };
    save(&path, function(), Options::default()).unwrap();
    let found = mismatches(load(&path, single(AdamW::default()), Options::default(), &TAKE));
    let [Mismatch::Hyperparameter { field, found, .. }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&**field, &**found), ("lr_factor", "a function"));
    load(&path, function(), Options::default(), &TAKE).unwrap();
    // A schedule of the file takes the place of a function.
    save(&path, single(AdamW::default()), Options::default()).unwrap();
    load(&path, function(), Options::default(), &TAKE).unwrap();
    assert_eq!(mismatches(load(&path, function(), Options::default(), &Load::default())).len(), 1);
}

/// A user-defined rule: a step of size `rate`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Own<const SAVES: bool> {
    rate: f64,
}

impl<const SAVES: bool> Rule for Own<SAVES> {
    const NAME: &'static str = "own";
    const DEFAULT_LR: f64 = 1.0;
    const WGSL: &'static str = Sgd::WGSL;
    const SAVED: Option<Saved<Self>> = if SAVES { Some(Saved::new()) } else { None };
    type Scalars<T: Float> = SgdScalars<T>;
    type State<T: Float> = SgdState<T>;

    fn validate(&self) -> Result<(), wgpu_optim::RuleError> {
        let error = wgpu_optim::RuleError::Hyperparameter {
            rule: Self::NAME,
            field: "rate",
            value: self.rate,
            bound: "above 0",
        };
        if self.rate > 0.0 { Ok(()) } else { Err(error) }
    }

    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> SgdScalars<f64> {
        Sgd::default().scalars(self.rate * lr, t, carry)
    }
}

impl<const SAVES: bool> CpuRule for Own<SAVES> {
    const MAX_ULPS: f64 = 2.0;

    fn update<T: Float>(s: &SgdScalars<T>, p: &mut T, g: T, state: &mut SgdState<T>) {
        Sgd::update(s, p, g, state);
    }
}

/// Nothing is written, for any group with the rule.
#[test]
fn a_rule_that_is_not_saved_is_an_error() {
    let directory = Directory::new("not-saved");
    let path = directory.file("run.safetensors");
    let own = || Group::new("own", Own::<false> { rate: 2.0 }).tensor("x", [3]);
    let other = || Group::new("other", AdamW::default()).tensor("w", [4]);
    for groups in [vec![own()], vec![own(), other()], vec![other(), own()]] {
        let mut run = on_cpu(Layout::new(groups).unwrap());
        run.steps(1);
        let error = run.save(&path, &Save::default()).unwrap_err();
        assert!(matches!(error, Error::NotSaved { rule: "own" }), "{error}");
        assert_eq!(error.to_string(), "own: the rule cannot be saved: set `Rule::SAVED`");
        assert!(directory.names().is_empty());
        let mut stream = Vec::new();
        let error = checkpoint::save_to(&mut run.engine(), &mut stream, &Save::default()).unwrap_err();
        assert!(matches!(error, Error::NotSaved { rule: "own" }), "{error}");
        assert!(stream.is_empty());
    }
}

#[test]
fn a_rule_of_ones_own_is_saved() {
    let directory = Directory::new("own");
    let path = directory.file("run.safetensors");
    let own = |rate| {
        let own = Group::new("own", Own::<true> { rate }).tensor("x", [3]);
        Layout::new([Group::new("other", AdamW::default()).tensor("w", [4]), own]).unwrap()
    };
    let mut run = on_cpu(own(2.0));
    run.steps(2).save(&path, &Save::default()).unwrap();
    let mut other = on_cpu(own(0.5));
    let found = mismatches(other.load(&path, &Load::default()));
    let rate = Mismatch::Hyperparameter {
        group: "own".into(),
        field: "rate".into(),
        found: "2.0".into(),
        expected: "0.5".into(),
    };
    assert_eq!(found, [rate]);
    other.load(&path, &TAKE).unwrap();
    assert!(bits(other.steps(2)) == bits(run.steps(2)));
}

/// A slot that our rules keep for other tensors alone is an extra slot, and the tensor is none.
#[test]
fn a_slot_of_other_tensors_is_extra() {
    let directory = Directory::new("extra");
    let path = directory.file("run.safetensors");
    let mixed = |momentum| {
        let sgd = Group::new("sgd", Sgd { momentum, ..Sgd::default() }).tensor("w", [4]);
        Layout::new([sgd, Group::new("lars", Lars::default()).tensor("v", [5])]).unwrap()
    };
    save(&path, mixed(0.9), Options::default()).unwrap();
    let ignore = Load { hyperparameters: Differing::Ignore, ..Load::default() };
    let found = mismatches(load(&path, mixed(0.0), Options::default(), &ignore));
    assert_eq!(found, [Mismatch::ExtraSlot { slot: "momentum_buffer".into(), tensors: 1 }]);
    load(&path, mixed(0.0), Options::default(), &Load { extra: Extra::Ignore, ..ignore }).unwrap();
}

/// The masters of a group that has not taken a step are zeros, and no parameters.
#[test]
fn masters_of_a_group_that_rests_are_no_parameters() {
    let directory = Directory::new("masters");
    let path = directory.file("run.safetensors");
    let layout = || {
        let rests = Group::new("rests", AdamW::default()).frozen(true).tensor("w", [4]);
        Layout::new([rests, Group::new("moves", AdamW::default()).tensor("v", [4])]).unwrap()
    };
    let options = Options { params: Format::Bf16, master: Master::F32, ..Options::default() };
    let mut saved = CpuRun::new(layout(), options, &[0.5; 8]);
    saved.step(&[1.0; 8], 0.125);
    checkpoint::save(&mut Cpu::new(&mut saved.optimizer), &path, &Save::default()).unwrap();
    let mut run = on_cpu(layout());
    let convert = Load { formats: Formats::Convert, ..Load::default() };
    let found = mismatches(run.load(&path, &convert));
    let missing = Mismatch::MissingSlot { slot: "param".into(), tensor: "w".into() };
    assert_eq!(found, [missing, Mismatch::ExtraSlot { slot: "master".into(), tensors: 1 }]);
    run.load(&path, &Load { missing: Missing::Zero, extra: Extra::Ignore, ..convert }).unwrap();
    assert_eq!(run.params()[..4], [0.5; 4], "parameters that the file lacks keep their values");
    assert_eq!(run.params()[4..], saved.state("master", "v"));
}

/// A loss scale that the file lacks is no value that is taken.
#[test]
fn a_loss_scale_is_not_left_out() {
    let directory = Directory::new("no-scale");
    let path = directory.file("run.safetensors");
    save(&path, single(AdamW::default()), Options::default()).unwrap();
    let options = Options { loss_scale: Some(LossScale::default()), ..Options::default() };
    for policy in [Load::default(), TAKE] {
        let found = mismatches(load(&path, single(AdamW::default()), options, &policy));
        let missing = Mismatch::LossScale { found: None, bound: "there" };
        assert!(matches!(&found[0], Mismatch::Option { field, .. } if field == "loss_scale"), "{found:?}");
        assert_eq!(found[1..], [missing], "{policy:?}");
    }
    let ignore = Load { options: Differing::Ignore, ..Load::default() };
    load(&path, single(AdamW::default()), options, &ignore).unwrap();
}
