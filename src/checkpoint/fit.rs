//! Whether a checkpoint fits an optimizer, and where everything comes from if it does.

use super::convert::{From, Numbers, Source, Target};
use super::error::{Error, Malformed, Mismatch};
use super::reader::Reader;
use super::record::{GroupRecord, Record};
use super::{
    Content, Counters, Differing, Dtype, Extra, Formats, Load, LossScaleState, Missing, PARAM, Plane,
    SCALE_END, blocks, lead,
};
use crate::layout::{Group, Layout, Tensor};
use crate::options::{MASTER, Options, REMAINDER, Rounding};
use crate::rules::Rule;
use crate::schedule::Schedule;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Options that say how numbers are stored.
const FORMATS: [&str; 5] = ["params", "grads", "states", "f32_states_below", "master"];
/// Slots that say together what the parameters are.
const OF_PARAMS: [&str; 3] = [PARAM, MASTER, REMAINDER];
/// Mismatches that are listed; of a large file that has nothing to do with the layout there would be no end.
const MAX_LISTED: usize = 1_000;

/// Of a text in a file, that may be long, its beginning.
fn clipped(text: &str) -> String {
    const LENGTH: usize = 200;
    let mut chars = text.chars();
    let mut clipped: String = chars.by_ref().take(LENGTH).collect();
    if chars.next().is_some() {
        clipped.push('…');
    }
    clipped
}

#[derive(Default)]
struct Mismatches {
    listed: Vec<Mismatch>,
    more: usize,
    /// Tensors that only the file has, by record or by name.
    extra: BTreeSet<String>,
}

impl Mismatches {
    fn add_extra(&mut self, tensor: &str) {
        if self.extra.len() < MAX_LISTED {
            self.extra.insert(clipped(tensor));
        }
    }

    fn add(&mut self, mismatch: impl FnOnce() -> Mismatch) {
        if self.listed.len() < MAX_LISTED {
            self.listed.push(mismatch());
        } else {
            self.more += 1;
        }
    }
}

/// For each plane and tensor of the flat space, where its values come from; and the counters to go on from.
pub(super) fn fit<R: Rule + Serialize + DeserializeOwned>(
    layout: &Layout<R>,
    options: &Options,
    planes: &[Plane],
    reader: &Reader,
    record: &Record,
    load: &Load,
) -> Result<(Vec<Vec<Source>>, Counters), Error> {
    let mut wrong = Mismatches::default();
    if record.rule != R::NAME {
        wrong.add(|| Mismatch::Rule { found: clipped(&record.rule), expected: R::NAME });
    }
    let groups: HashMap<&str, &GroupRecord> =
        record.groups.0.iter().map(|group| (group.name.as_str(), group)).collect();
    if groups.len() != record.groups.0.len() {
        let (field, value) = ("groups", record.groups.0.len().to_string());
        let reason = Malformed::Value { field, value, bound: "of different names" };
        return Err(Error::Malformed { path: reader.path().to_owned(), reason });
    }
    if record.rule == R::NAME && load.hyperparameters == Differing::Error {
        for group in layout.groups() {
            if let Some(saved) = groups.get(group.name()) {
                compare_group(group, saved, &mut wrong);
            }
        }
    }
    compare_options(options, record, load, &mut wrong);
    let present = compare_tensors(layout, record, load, &mut wrong);
    let sources = sources(layout, planes, reader, record, load, &present, &mut wrong);
    for tensor in std::mem::take(&mut wrong.extra) {
        wrong.add(|| Mismatch::ExtraTensor { tensor });
    }
    let loss_scale = loss_scale(options, record, load, &mut wrong);
    if wrong.more > 0 {
        wrong.listed.push(Mismatch::More { count: wrong.more });
    }
    if !wrong.listed.is_empty() {
        return Err(Error::Mismatches(wrong.listed));
    }
    // Of a group that the file lacks: SGD's velocity begins with its next step, and NAdam's product is what it tends to, as all corrections of state that begins late are those of the run's count.
    let carry = |group: &Group<R>| groups.get(group.name()).map_or(0.0, |saved| saved.carry);
    let carries = layout.groups().iter().map(carry).collect();
    Ok((sources, Counters { steps: record.steps, taken: record.taken, carries, loss_scale }))
}

fn compare_group<R: Rule + Serialize + DeserializeOwned>(
    group: &Group<R>,
    saved: &GroupRecord,
    wrong: &mut Mismatches,
) {
    let differs = |field: &str, found: String, expected: String| Mismatch::Hyperparameter {
        group: group.name().into(),
        field: field.into(),
        found,
        expected,
    };
    match saved.hyperparameters.parse::<R>() {
        Ok(rule) if rule == *group.rule() => {}
        Ok(rule) => {
            let [found, expected] = [object(&rule), object(group.rule())];
            for (field, found, expected) in different(&found, &expected) {
                wrong.add(|| differs(field, found, expected));
            }
        }
        Err(error) => wrong
            .add(|| differs("hyperparameters", clipped(&error.to_string()), format!("{:?}", group.rule()))),
    }
    let ours = serde_json::to_string(group.factor());
    let found = saved.lr_factor.as_ref().map(|json| (json.text(), json.parse::<Schedule>()));
    let same = match (&found, &ours) {
        // A function of the program's cannot be saved, nor compared.
        (None, Err(_)) => true,
        (Some((_, Ok(found))), Ok(_)) => found == group.factor(),
        _ => false,
    };
    if !same {
        let function = || "a function".to_owned();
        let found = found.map_or_else(function, |(text, _)| clipped(text));
        wrong.add(|| differs("lr_factor", found, ours.unwrap_or_else(|_| function())));
    }
}

/// The fields of a struct.
fn object<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Fields that differ, with both values.
fn different<'a>(
    found: &'a Map<String, Value>,
    expected: &'a Map<String, Value>,
) -> impl Iterator<Item = (&'a str, String, String)> {
    let fields = expected.iter().filter(|(field, value)| found.get(*field) != Some(value));
    fields.map(|(field, value)| {
        let found = found.get(field).map_or_else(|| "absent".into(), Value::to_string);
        (field.as_str(), found, value.to_string())
    })
}

fn compare_options(options: &Options, record: &Record, load: &Load, wrong: &mut Mismatches) {
    let at_random = options.storage().stochastic;
    let Some(json) = &record.options else {
        if at_random && load.options == Differing::Error {
            wrong.add(|| Mismatch::Seed);
        }
        return;
    };
    let saved: Options = match json.parse() {
        Ok(saved) => saved,
        Err(error) => {
            let differs = || Mismatch::Option {
                field: "all".into(),
                found: clipped(&error.to_string()),
                expected: format!("{options:?}"),
            };
            // Formats are those of the tensors, whatever the options say.
            if load.options == Differing::Error {
                wrong.add(differs);
            }
            return;
        }
    };
    let [found, expected] = [object(&saved), object(options)];
    for (field, found, expected) in different(&found, &expected) {
        let policy = if FORMATS.contains(&field) {
            load.formats == Formats::Same
        } else {
            load.options == Differing::Error
        };
        if policy && field == "rounding" && saved.rounding == Rounding::Nearest && at_random {
            wrong.add(|| Mismatch::Seed);
        } else if policy {
            wrong.add(|| Mismatch::Option { field: field.into(), found, expected });
        }
    }
}

/// Where each of the layout's tensors, in the order of the flat space, lay in the file's; `None` if the file lacks it.
fn compare_tensors<R: Rule>(
    layout: &Layout<R>,
    record: &Record,
    load: &Load,
    wrong: &mut Mismatches,
) -> Vec<Option<u64>> {
    let places: HashMap<&str, usize> =
        layout.by_offset().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let tensors: Vec<&Tensor> = layout.by_offset().collect();
    let mut present = vec![None; tensors.len()];
    for saved in &record.groups.0 {
        for (name, offset) in saved.tensors.iter() {
            let Some(&i) = places.get(name) else {
                if load.extra == Extra::Error {
                    wrong.add_extra(name);
                }
                continue;
            };
            present[i] = Some(offset);
            let group = layout.groups()[tensors[i].group].name();
            if group != saved.name {
                wrong.add(|| Mismatch::Group {
                    tensor: name.into(),
                    found: clipped(&saved.name),
                    expected: group.into(),
                });
            }
        }
    }
    if load.missing == Missing::Error {
        for (tensor, _) in tensors.iter().zip(&present).filter(|(_, present)| present.is_none()) {
            wrong.add(|| Mismatch::MissingTensor { tensor: tensor.name.clone() });
        }
    }
    present
}

/// Finds where values come from.
struct Finder<'a> {
    planes: &'a [Plane],
    reader: &'a Reader,
    load: &'a Load,
    /// Whether steps have been taken: before, no master is there yet.
    taken: bool,
    used: Vec<bool>,
    /// Slots in a format that is not ours, with both.
    formats: BTreeMap<String, (String, String)>,
}

/// A tensor of the layout, and where it began in the file's.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    tensor: &'a Tensor,
    saved: Option<u64>,
}

fn sources<R: Rule>(
    layout: &Layout<R>,
    planes: &[Plane],
    reader: &Reader,
    record: &Record,
    load: &Load,
    present: &[Option<u64>],
    wrong: &mut Mismatches,
) -> Vec<Vec<Source>> {
    let used = vec![false; reader.tensors().len()];
    let mut finder = Finder { planes, reader, load, taken: record.taken > 0, used, formats: BTreeMap::new() };
    let tensors: Vec<_> = layout.by_offset().collect();
    let mut all = Vec::new();
    for plane in planes {
        let mut sources = vec![Source { from: From::Zero, bytes: 0 }; tensors.len()];
        for &i in &plane.tensors {
            let wanted = Wanted { tensor: tensors[i], saved: present[i] };
            sources[i] = Source { from: finder.find(plane, wanted, wrong), bytes: plane.bytes(tensors[i]) };
        }
        all.push(sources);
    }
    for (slot, (found, expected)) in std::mem::take(&mut finder.formats) {
        wrong.add(|| Mismatch::Format { slot, found, expected });
    }
    if load.extra == Extra::Error {
        finder.extra(wrong);
    }
    all
}

impl Finder<'_> {
    fn find(&mut self, plane: &Plane, wanted: Wanted<'_>, wrong: &mut Mismatches) -> From {
        let Wanted { tensor, saved } = wanted;
        if let Some(i) = self.same(plane, wanted) {
            self.use_tensor(i, plane.shape(tensor), wrong);
            return From::Same(i);
        }
        let of_params = OF_PARAMS.contains(&plane.slot.as_str());
        let numbers = if of_params { self.params(wanted) } else { self.numbers(&plane.slot, wanted) };
        let Some(numbers) = numbers else {
            if let Some(i) = self.stored(&plane.slot, tensor) {
                // There, and neither ours nor numbers.
                self.refuse_format(plane, i);
            } else if saved.is_some() && self.load.missing == Missing::Error {
                wrong.add(|| Mismatch::MissingSlot { slot: plane.slot.clone(), tensor: tensor.name.clone() });
            }
            return if plane.slot == PARAM { From::Kept } else { From::Zero };
        };
        for i in numbers.tensors() {
            let scales = matches!(numbers, Numbers::Blocks { scales, .. } if i == scales);
            let shape =
                if scales { vec![blocks(saved.unwrap_or(0), tensor.len)] } else { tensor.shape.clone() };
            self.use_tensor(i, shape, wrong);
        }
        if self.load.formats == Formats::Same {
            self.refuse_format(plane, numbers.tensors()[0]);
            return From::Zero;
        }
        if of_params {
            // All of them say one thing.
            for slot in OF_PARAMS {
                if let Some(i) = self.stored(slot, tensor) {
                    self.used[i] = true;
                }
            }
        }
        let split = plane.slot == PARAM && self.keeps(REMAINDER);
        From::Converted(numbers, Target::new(plane.content, tensor.offset, tensor.len, split))
    }

    fn use_tensor(&mut self, i: usize, expected: Vec<u64>, wrong: &mut Mismatches) {
        let stored = &self.reader.tensors()[i];
        if !self.used[i] && *stored.shape() != *expected {
            let (tensor, found) = (clipped(stored.name()), stored.shape().into());
            wrong.add(|| Mismatch::Shape { tensor, found, expected });
        }
        self.used[i] = true;
    }

    fn refuse_format(&mut self, plane: &Plane, found: usize) {
        self.used[found] = true;
        let scale = [plane.slot.as_str(), SCALE_END].concat();
        if let Some((_, name)) = self.reader.tensors()[found].name().split_once('/')
            && let Some(i) = self.reader.index(&[scale.as_str(), "/", name].concat())
        {
            self.used[i] = true;
        }
        let mut found = self.reader.tensors()[found].dtype().to_string();
        let expected = plane.content.dtype().to_string();
        if found == expected {
            found += ", in blocks or halves that begin elsewhere,";
        }
        self.formats.entry(plane.slot.clone()).or_insert((found, expected));
    }

    fn stored(&self, slot: &str, tensor: &Tensor) -> Option<usize> {
        self.reader.index(&[slot, "/", &tensor.name].concat())
    }

    fn dtype(&self, slot: &str, tensor: &Tensor) -> Option<Dtype> {
        self.stored(slot, tensor).map(|i| self.reader.tensors()[i].dtype())
    }

    fn keeps(&self, slot: &str) -> bool {
        self.planes.iter().any(|plane| plane.slot == slot)
    }

    /// The tensor of the file whose bytes are what we keep.
    fn same(&self, plane: &Plane, wanted: Wanted<'_>) -> Option<usize> {
        let Wanted { tensor, saved } = wanted;
        let i = self.reader.index(&[&plane.prefix(), tensor.name.as_str()].concat())?;
        let dtype = self.reader.tensors()[i].dtype();
        let blocks = matches!(plane.content, Content::Codes | Content::Scales);
        // Blocks are counted from where the tensor lies.
        let placed = !blocks || saved.is_some_and(|saved| lead(saved) == lead(tensor.offset));
        let whole = !OF_PARAMS.contains(&plane.slot.as_str()) || !self.keeps(PARAM) || {
            let ours =
                self.planes.iter().find(|plane| plane.slot == PARAM).map(|plane| plane.content.dtype());
            let kept = |slot| self.keeps(slot) == self.stored(slot, tensor).is_some();
            self.dtype(PARAM, tensor) == ours && kept(MASTER) && kept(REMAINDER)
        };
        (dtype == plane.content.dtype() && placed && whole).then_some(i)
    }

    /// The numbers of a slot.
    fn numbers(&self, slot: &str, wanted: Wanted<'_>) -> Option<Numbers> {
        Numbers::find(self.reader, slot, &wanted.tensor.name, wanted.saved.unwrap_or(0))
    }

    /// The parameters with all the digits that the file has of them.
    fn params(&self, wanted: Wanted<'_>) -> Option<Numbers> {
        let Wanted { tensor, .. } = wanted;
        if let (Some(masters), Some(Dtype::F32)) = (self.stored(MASTER, tensor), self.dtype(MASTER, tensor)) {
            match self.numbers(PARAM, wanted) {
                Some(Numbers::Plain { tensor: params, format }) => {
                    return Some(Numbers::Masters { masters, params, format });
                }
                // The file has no other: they are zero until the first step.
                _ if self.taken => return self.numbers(MASTER, wanted),
                _ => {}
            }
        }
        if let (Some(Dtype::BF16), Some(Dtype::U16)) =
            (self.dtype(PARAM, tensor), self.dtype(REMAINDER, tensor))
        {
            let (params, remainders) = (self.stored(PARAM, tensor)?, self.stored(REMAINDER, tensor)?);
            return Some(Numbers::Joined { params, remainders });
        }
        self.numbers(PARAM, wanted)
    }

    /// What only the file has.
    fn extra(&self, wrong: &mut Mismatches) {
        let mut slots: BTreeMap<&str, usize> = BTreeMap::new();
        for (tensor, _) in self.reader.tensors().iter().zip(&self.used).filter(|(_, used)| !**used) {
            let (slot, name) = tensor.name().split_once('/').unwrap_or(("", tensor.name()));
            if !self.keeps(slot) && (slots.len() < MAX_LISTED || slots.contains_key(slot)) {
                *slots.entry(slot).or_default() += 1;
            } else {
                wrong.add_extra(name);
            }
        }
        for (slot, tensors) in slots {
            wrong.add(|| Mismatch::ExtraSlot { slot: clipped(slot), tensors });
        }
    }
}

fn loss_scale(
    options: &Options,
    record: &Record,
    load: &Load,
    wrong: &mut Mismatches,
) -> Option<LossScaleState> {
    let ours = options.loss_scale?;
    let Some(saved) = record.loss_scale else {
        if load.options == Differing::Error {
            wrong.add(|| Mismatch::LossScale { found: None, bound: "there" });
        }
        return None;
    };
    if !ours.contains(saved.scale) {
        let found = Some(saved.scale.into());
        wrong.add(|| Mismatch::LossScale { found, bound: "from min to max" });
    }
    if saved.good_steps >= ours.growth_interval {
        let (found, bound) = (saved.good_steps, ours.growth_interval);
        wrong.add(|| Mismatch::GoodSteps { found, bound });
    }
    Some(saved)
}
