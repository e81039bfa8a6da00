//! The content of a checkpoint, or of another safetensors file.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use wgpu_optim::checkpoint::{Error, Metadata, Reader};

/// Elements per read.
const PART: u64 = 1 << 20;

/// The content of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The path of the file.
    pub file: String,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The run of a checkpoint; none for other files.
    pub run: Option<Run>,
    /// Other metadata.
    pub metadata: BTreeMap<String, String>,
    /// The slots of all tensors together.
    pub slots: Vec<Slot>,
    /// Every tensor in every slot.
    pub tensors: Vec<Tensor>,
}

/// The run of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The program that saved the checkpoint.
    pub writer: String,
    /// The names of the groups' rules, each once, joined by " + ".
    pub rule: String,
    /// Number of recorded steps.
    pub steps: u64,
    /// Number of taken steps.
    pub taken: u64,
    /// Loss scale and good steps.
    pub loss_scale: Option<(f32, u32)>,
    /// The options, as JSON.
    pub options: Value,
    /// The groups.
    pub groups: Vec<Group>,
}

/// A group.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The group's name.
    pub name: String,
    /// The name of the group's rule.
    pub rule: String,
    /// The hyperparameters as JSON.
    pub hyperparameters: Value,
    /// The factor of the learning rate as JSON; null if it is a function.
    pub lr_factor: Value,
    /// The number that the rule carries; null if it is not finite.
    pub carry: f64,
    /// Number of steps that the group has taken.
    pub taken: u64,
    /// Whether the group is frozen.
    pub frozen: bool,
    /// The group's tensors.
    pub tensors: Vec<String>,
}

/// One slot of all tensors.
#[derive(Clone, Debug, Serialize)]
pub struct Slot {
    /// The name.
    pub slot: String,
    /// All formats that occur.
    pub formats: Vec<String>,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of elements.
    pub elements: u64,
    /// Bytes, including scales.
    pub bytes: u64,
    /// A summary of the numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// One slot of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Tensor {
    /// The tensor.
    pub name: String,
    /// The slot; empty in a file that is not a checkpoint.
    pub slot: String,
    /// The format of the numbers.
    pub format: String,
    /// The dimensions of the tensor.
    pub shape: Vec<u64>,
    /// Bytes, including scales.
    pub bytes: u64,
    /// A summary of the numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// A summary of numbers; empty for stored values that are not numbers, such as remainders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Numbers {
    /// Count of infinite numbers and NaN.
    pub nonfinite: u64,
    /// The least finite number.
    pub min: Option<f32>,
    /// The largest finite number.
    pub max: Option<f32>,
    /// The root mean square of the finite numbers.
    pub rms: Option<f64>,
    #[serde(skip)]
    squares: f64,
    #[serde(skip)]
    finite: u64,
}

impl Numbers {
    fn add(&mut self, numbers: &[f32]) {
        for &x in numbers {
            if x.is_finite() {
                self.min = Some(self.min.map_or(x, |min| min.min(x)));
                self.max = Some(self.max.map_or(x, |max| max.max(x)));
                self.squares += f64::from(x).powi(2);
                self.finite += 1;
            } else {
                self.nonfinite += 1;
            }
        }
        self.finish();
    }

    fn join(&mut self, other: &Self) {
        let either = |a: Option<f32>, b: Option<f32>, f: fn(f32, f32) -> f32| {
            a.map_or(b, |a| Some(b.map_or(a, |b| f(a, b))))
        };
        self.min = either(self.min, other.min, f32::min);
        self.max = either(self.max, other.max, f32::max);
        self.nonfinite += other.nonfinite;
        self.squares += other.squares;
        self.finite += other.finite;
        self.finish();
    }

    fn finish(&mut self) {
        self.rms = (self.finite > 0).then(|| (self.squares / self.finite as f64).sqrt());
    }
}

/// Reads a whole file in parts; `progress` gets the bytes done and the bytes in all.
///
/// # Errors
/// The errors of [`Reader`] and [`Metadata`].
pub fn inspect(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Inspection, Error> {
    let mut reader = Reader::open(path)?;
    let record = match Metadata::read(&reader) {
        Ok(record) => Some(record),
        Err(Error::NotACheckpoint { .. }) => None,
        Err(error) => return Err(error),
    };
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    for (name, offset) in
        record.iter().flat_map(|record| &record.groups.0).flat_map(|group| group.tensors.iter())
    {
        places.insert(name.into(), offset);
    }
    let stored = reader.tensors().to_vec();
    let total = stored.iter().map(|tensor| tensor.bytes()).sum();
    let (mut done, mut tensors) = (0, Vec::new());
    for tensor in &stored {
        let (slot, name) = match &record {
            Some(_) => tensor.name().split_once('/').unwrap_or(("", tensor.name())),
            None => ("", tensor.name()),
        };
        // Scales are listed with their codes.
        let codes = slot.strip_suffix(".scale").and_then(|slot| reader.tensor(&[slot, "/", name].concat()));
        if codes.is_some() {
            continue;
        }
        let scales = reader.tensor(&[slot, ".scale/", name].concat()).map(|scales| scales.bytes());
        let format = match (scales, tensor.dtype().to_string().as_str()) {
            (Some(_), "U8") => "q8".to_owned(),
            (_, dtype) => dtype.to_lowercase(),
        };
        let mut numbers = Numbers::default();
        let offset = places.get(name).copied().unwrap_or(0);
        for first in (0..tensor.len()).step_by(PART as usize) {
            let last = (first + PART).min(tensor.len());
            let part = if record.is_some() {
                reader.numbers(slot, name, offset, first, last)?
            } else {
                reader.plain_numbers(name, first, last)?
            };
            part.iter().for_each(|part| numbers.add(part));
            progress(done + tensor.bytes() / tensor.len() * last, total);
        }
        done += tensor.bytes();
        tensors.push(Tensor {
            name: name.into(),
            slot: slot.into(),
            format,
            shape: tensor.shape().into(),
            bytes: tensor.bytes() + scales.unwrap_or(0),
            numbers,
        });
    }
    let mut slots: Vec<Slot> = Vec::new();
    for tensor in &tensors {
        let at = slots.iter().position(|slot| slot.slot == tensor.slot).unwrap_or_else(|| {
            let (slot, formats) = (tensor.slot.clone(), Vec::new());
            slots.push(Slot {
                slot,
                formats,
                tensors: 0,
                elements: 0,
                bytes: 0,
                numbers: Numbers::default(),
            });
            slots.len() - 1
        });
        let slot = &mut slots[at];
        if !slot.formats.contains(&tensor.format) {
            slot.formats.push(tensor.format.clone());
        }
        slot.tensors += 1;
        slot.elements += tensor.shape.iter().product::<u64>();
        slot.bytes += tensor.bytes;
        slot.numbers.join(&tensor.numbers);
    }
    let mut metadata = reader.metadata().clone();
    if record.is_some() {
        metadata.remove("wgpu_optim");
    }
    Ok(Inspection {
        file: path.display().to_string(),
        bytes: total,
        run: record.map(run),
        metadata,
        slots,
        tensors,
    })
}

fn run(record: Metadata) -> Run {
    let value = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    let groups = record.groups.0.iter().map(|group| Group {
        name: group.name.clone(),
        rule: group.rule.clone().unwrap_or_else(|| record.rule.clone()),
        hyperparameters: value(group.hyperparameters.text()),
        lr_factor: group.lr_factor.as_ref().map_or(Value::Null, |json| value(json.text())),
        carry: group.carry,
        taken: group.taken.unwrap_or(record.taken),
        frozen: group.frozen,
        tensors: group.tensors.iter().map(|(name, _)| name.into()).collect(),
    });
    let groups: Vec<_> = groups.collect();
    let mut rules: Vec<&str> = Vec::new();
    for group in &groups {
        if !rules.contains(&group.rule.as_str()) {
            rules.push(&group.rule);
        }
    }
    Run {
        rule: rules.join(" + "),
        options: record.options.as_ref().map_or(Value::Null, |json| value(json.text())),
        loss_scale: record.loss_scale.map(|state| (state.scale, state.good_steps)),
        writer: record.writer,
        steps: record.steps,
        taken: record.taken,
        groups,
    }
}
