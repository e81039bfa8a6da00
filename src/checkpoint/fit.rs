//! The check whether a checkpoint fits an optimizer, and the source of every value if it does.

use super::compare;
use super::convert::{From, Numbers, Source, Target};
use super::late::Late;
use super::metadata::{GroupRecord, Metadata};
use super::reader::Reader;
use super::{Differing, Dtype, Extra, Formats, Load, Missing, PARAM, SCALE_END};
use crate::error::checkpoint::{Error, Malformed, Mismatch};
use crate::layout::{Carry, Group, Layout, Tensor};
use crate::options::Options;
use crate::rules::names::{MASTER, REMAINDER};
use crate::state::{Content, Counters, LossScaleState, Stream, blocks, lead};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Slots that contain the parameters together.
pub(super) const OF_PARAMS: [&str; 3] = [PARAM, MASTER, REMAINDER];
/// Largest number of listed mismatches, since a large unrelated file has very many.
const MAX_LISTED: usize = 1_000;

/// The beginning of a text in a file, which may be long and have numbers with any number of digits.
pub(super) fn clipped(text: &str) -> String {
    const LENGTH: usize = 200;
    let text = crate::error::with_short_numbers(text);
    let mut chars = text.chars();
    let mut clipped: String = chars.by_ref().take(LENGTH).collect();
    if chars.next().is_some() {
        clipped.push('…');
    }
    clipped
}

#[derive(Default)]
pub(super) struct Mismatches {
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

    pub(super) fn add(&mut self, mismatch: impl FnOnce() -> Mismatch) {
        if self.listed.len() < MAX_LISTED {
            self.listed.push(mismatch());
        } else {
            self.more += 1;
        }
    }
}

/// A checkpoint that fits an optimizer.
pub(super) struct Fitted {
    /// The source of values for each stream and tensor of the flat space.
    pub(super) sources: Vec<Vec<Source>>,
    /// The counters from which the run continues.
    pub(super) counters: Counters,
    /// The optimizer's layout and options, with the values that it takes from the file.
    pub(super) layout: Layout,
    pub(super) options: Options,
}

/// Compares a checkpoint with an optimizer.
pub(super) fn fit(
    layout: &Layout,
    options: &Options,
    streams: &[Stream],
    reader: &Reader<'_>,
    record: &Metadata,
    load: &Load,
) -> Result<Fitted, Error> {
    let mut wrong = Mismatches::default();
    let groups: HashMap<&str, &GroupRecord> =
        record.groups.0.iter().map(|group| (group.name.as_str(), group)).collect();
    if groups.len() != record.groups.0.len() {
        let (field, value) = ("groups", record.groups.0.len().to_string());
        let reason = Malformed::Value { field, value, bound: "of different names" };
        return Err(Error::Malformed { location: reader.location().clone(), reason });
    }
    let (mut taken_layout, mut taken_options) = (layout.clone(), *options);
    compare::rules(layout, record, &groups, &mut wrong);
    for group in layout.groups() {
        if let Some(saved) = groups.get(group.name()) {
            compare::group(group, record, saved, load.hyperparameters, &mut taken_layout, &mut wrong);
        }
    }
    compare::options(options, record, load, &mut taken_options, &mut wrong);
    let present = compare_tensors(layout, record, load, &mut wrong);
    let sources = sources(layout, streams, reader, load, &present, &mut wrong);
    let saved = |group: &Group| {
        let carry =
            |saved: &&GroupRecord| Carry { rule: saved.carry, taken: saved.taken.unwrap_or(record.taken) };
        // A group that the file lacks starts as in a new optimizer.
        groups.get(group.name()).map(carry).unwrap_or_default()
    };
    let mut carries: Vec<Carry> = layout.groups().iter().map(saved).collect();
    let late = Late { layout: &taken_layout, options, streams, sources: &sources, present: &present };
    late.begin(&mut carries, load, &mut wrong);
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
    let counters = Counters { steps: record.steps, taken: record.taken, carries, loss_scale };
    Ok(Fitted { sources, counters, layout: taken_layout, options: taken_options })
}

/// The place in the file's layout of each tensor of the layout, in the order of the flat space; `None` if the
/// file lacks it.
fn compare_tensors(
    layout: &Layout,
    record: &Metadata,
    load: &Load,
    wrong: &mut Mismatches,
) -> Vec<Option<Place>> {
    let places: HashMap<&str, usize> =
        layout.by_offset().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let tensors: Vec<&Tensor> = layout.by_offset().collect();
    let mut present = vec![None; tensors.len()];
    for saved in &record.groups.0 {
        let taken = saved.taken.unwrap_or(record.taken) > 0;
        for (name, offset) in saved.tensors.iter() {
            let Some(&i) = places.get(name) else {
                // A tensor without elements has no place.
                if load.extra == Extra::Error && layout.tensor(name).is_err() {
                    wrong.add_extra(name);
                }
                continue;
            };
            present[i] = Some(Place { offset, taken });
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

/// Finds the sources of values.
struct Finder<'a> {
    streams: &'a [Stream],
    reader: &'a Reader<'a>,
    load: &'a Load,
    used: Vec<bool>,
    /// Slots in another format than the optimizer's, with both formats.
    formats: BTreeMap<String, (String, String)>,
}

/// A tensor in the layout of the file.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The tensor's first element.
    offset: u64,
    /// Whether the tensor's group has taken steps. Before the first step there is no master.
    taken: bool,
}

/// A tensor of the layout, and its place in the file's.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    tensor: &'a Tensor,
    saved: Option<Place>,
}

impl Wanted<'_> {
    /// The tensor's first element in the file's layout.
    fn offset(&self) -> u64 {
        self.saved.map_or(0, |saved| saved.offset)
    }
}

fn sources(
    layout: &Layout,
    streams: &[Stream],
    reader: &Reader,
    load: &Load,
    present: &[Option<Place>],
    wrong: &mut Mismatches,
) -> Vec<Vec<Source>> {
    let used = vec![false; reader.tensors().len()];
    let mut finder = Finder { streams, reader, load, used, formats: BTreeMap::new() };
    let tensors: Vec<_> = layout.by_offset().collect();
    let mut all = Vec::new();
    for stream in streams {
        let mut sources = vec![Source { from: From::Zero, bytes: 0 }; tensors.len()];
        for &i in &stream.tensors {
            let wanted = Wanted { tensor: tensors[i], saved: present[i] };
            sources[i] = Source { from: finder.find(stream, wanted, wrong), bytes: stream.bytes(tensors[i]) };
        }
        all.push(sources);
    }
    for (slot, (found, expected)) in std::mem::take(&mut finder.formats) {
        wrong.add(|| Mismatch::Format { slot, found, expected });
    }
    if load.extra == Extra::Error {
        finder.extra(layout, wrong);
    }
    all
}

impl Finder<'_> {
    fn find(&mut self, stream: &Stream, wanted: Wanted<'_>, wrong: &mut Mismatches) -> From {
        let Wanted { tensor, saved } = wanted;
        if let Some(i) = self.same(stream, wanted) {
            self.use_tensor(i, stream.shape(tensor), wrong);
            return From::Same(i);
        }
        let of_params = OF_PARAMS.contains(&stream.slot.as_str());
        let numbers = if of_params { self.params(wanted) } else { self.numbers(&stream.slot, wanted) };
        let Some(numbers) = numbers else {
            if let Some(i) = self.stored(&stream.slot, tensor) {
                // The slot exists, but is neither in the optimizer's format nor numbers.
                self.refuse_format(stream, i);
                return From::Kept;
            } else if saved.is_some() && self.load.missing == Missing::Error {
                wrong
                    .add(|| Mismatch::MissingSlot { slot: stream.slot.clone(), tensor: tensor.name.clone() });
            }
            return if stream.slot == PARAM { From::Kept } else { From::Zero };
        };
        for i in numbers.tensors() {
            let scales = matches!(numbers, Numbers::Blocks { scales, .. } if i == scales);
            let shape = if scales { vec![blocks(wanted.offset(), tensor.len)] } else { tensor.shape.clone() };
            self.use_tensor(i, shape, wrong);
        }
        if self.load.formats == Formats::Same {
            self.refuse_format(stream, numbers.tensors()[0]);
            return From::Kept;
        }
        if of_params {
            // All of these mismatches have one cause.
            for slot in OF_PARAMS {
                if let Some(i) = self.stored(slot, tensor) {
                    self.used[i] = true;
                }
            }
        }
        let split = stream.slot == PARAM && self.keeps(REMAINDER);
        From::Converted(numbers, Target::new(stream.content, tensor.offset, tensor.len, split))
    }

    fn use_tensor(&mut self, i: usize, expected: Vec<u64>, wrong: &mut Mismatches) {
        let stored = &self.reader.tensors()[i];
        if !self.used[i] && *stored.shape() != *expected {
            let (tensor, found) = (clipped(stored.name()), stored.shape().into());
            wrong.add(|| Mismatch::Shape { tensor, found, expected });
        }
        self.used[i] = true;
    }

    fn refuse_format(&mut self, stream: &Stream, found: usize) {
        self.used[found] = true;
        let scale = [stream.slot.as_str(), SCALE_END].concat();
        if let Some((_, name)) = self.reader.tensors()[found].name().split_once('/')
            && let Some(i) = self.reader.index(&[scale.as_str(), "/", name].concat())
        {
            self.used[i] = true;
        }
        let mut found = self.reader.tensors()[found].dtype().to_string();
        let expected = stream.content.dtype().to_string();
        if found == expected {
            found += ", in blocks or halves that begin elsewhere,";
        }
        self.formats.entry(stream.slot.clone()).or_insert((found, expected));
    }

    fn stored(&self, slot: &str, tensor: &Tensor) -> Option<usize> {
        self.reader.index(&[slot, "/", &tensor.name].concat())
    }

    fn dtype(&self, slot: &str, tensor: &Tensor) -> Option<Dtype> {
        self.stored(slot, tensor).map(|i| self.reader.tensors()[i].dtype())
    }

    fn keeps(&self, slot: &str) -> bool {
        self.streams.iter().any(|stream| stream.slot == slot)
    }

    /// The tensor of the file with the bytes that the optimizer keeps.
    fn same(&self, stream: &Stream, wanted: Wanted<'_>) -> Option<usize> {
        let Wanted { tensor, saved } = wanted;
        let i = self.reader.index(&[&stream.prefix(), tensor.name.as_str()].concat())?;
        let dtype = self.reader.tensors()[i].dtype();
        let blocks = matches!(stream.content, Content::Codes | Content::Scales);
        // Blocks are counted from the tensor's offset.
        let placed = !blocks || saved.is_some_and(|saved| lead(saved.offset) == lead(tensor.offset));
        let whole = !OF_PARAMS.contains(&stream.slot.as_str()) || !self.keeps(PARAM) || {
            let ours =
                self.streams.iter().find(|stream| stream.slot == PARAM).map(|stream| stream.content.dtype());
            let kept = |slot| self.keeps(slot) == self.stored(slot, tensor).is_some();
            self.dtype(PARAM, tensor) == ours && kept(MASTER) && kept(REMAINDER)
        };
        (dtype == stream.content.dtype() && placed && whole).then_some(i)
    }

    /// The numbers of a slot.
    fn numbers(&self, slot: &str, wanted: Wanted<'_>) -> Option<Numbers> {
        Numbers::find(self.reader, slot, &wanted.tensor.name, wanted.offset())
    }

    /// The parameters with all digits that the file has.
    fn params(&self, wanted: Wanted<'_>) -> Option<Numbers> {
        let Wanted { tensor, saved } = wanted;
        if let (Some(masters), Some(Dtype::F32)) = (self.stored(MASTER, tensor), self.dtype(MASTER, tensor)) {
            match self.numbers(PARAM, wanted) {
                Some(Numbers::Plain { tensor: params, format }) => {
                    return Some(Numbers::Masters { masters, params, format });
                }
                // The file has no other digits: they are zero until the first step.
                _ if saved.is_some_and(|saved| saved.taken) => return self.numbers(MASTER, wanted),
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

    /// Lists the content that only the file has.
    fn extra(&self, layout: &Layout, wrong: &mut Mismatches) {
        let mut slots: BTreeMap<&str, usize> = BTreeMap::new();
        for (tensor, _) in self.reader.tensors().iter().zip(&self.used).filter(|(_, used)| !**used) {
            let (slot, name) = tensor.name().split_once('/').unwrap_or(("", tensor.name()));
            // A tensor without elements lacks nothing and has nothing in excess.
            if let Some(ours) = layout.tensor(name).ok().filter(|ours| ours.len == 0) {
                if tensor.len() > 0 {
                    let (tensor, found) = (clipped(tensor.name()), tensor.shape().into());
                    wrong.add(|| Mismatch::Shape { tensor, found, expected: ours.shape.clone() });
                }
                continue;
            }
            // A slot may be kept only for tensors of other rules.
            let kept = self.keeps(slot) && layout.tensor(name).is_err();
            if !kept && (slots.len() < MAX_LISTED || slots.contains_key(slot)) {
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
    record: &Metadata,
    load: &Load,
    wrong: &mut Mismatches,
) -> Option<LossScaleState> {
    let ours = options.loss_scale?;
    let Some(saved) = record.loss_scale else {
        if load.options != Differing::Ignore {
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
