//! Trajectory files: records of the steps of another implementation, in the format `optim-trajectory/1`.

mod error;
mod metadata;
mod store;

pub use error::Error;
pub use metadata::{Clip, FORMAT};

use metadata::Metadata;
use std::collections::HashMap;
use std::path::Path;
use store::Store;
use wgpu_optim::AnyRule;

/// A recorded run: inputs, the truth, and the other implementation's result.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// The program that recorded the run.
    pub source: Option<String>,
    /// The clip of the gradients of all groups.
    pub clip: Option<Clip>,
    /// The groups; every tensor is in exactly one of them.
    pub groups: Vec<Group>,
    /// Whether a step with a gradient that is not finite is skipped.
    pub skip_nonfinite: bool,
    /// Metadata keys outside the format, which were not read, in order.
    pub unread_metadata: Vec<String>,
    /// The learning rate of each step.
    pub lr: Vec<f64>,
    /// The momentum, or β₁, of each step; it replaces the configured value in groups with a rule that has
    /// one.
    pub momentum: Option<Vec<f64>>,
    /// The factor of the gradients of each step.
    pub loss_scale: Option<Vec<f64>>,
    /// The parameters before the first step, flat: tensor after tensor without gaps, in the order of
    /// [`groups`](Self::groups).
    pub params: Vec<f32>,
    /// The raw gradients of each step, in the order of the parameters.
    pub grads: Vec<Vec<f32>>,
    /// The values that are compared after the last step.
    pub targets: Vec<Target>,
}

/// Tensors that share a rule and its hyperparameters.
#[derive(Clone, Debug)]
pub struct Group {
    /// The group's name.
    pub name: String,
    /// The group's rule.
    pub rule: AnyRule,
    /// The factor of the group's learning rate.
    pub lr_factor: f64,
    /// Names and shapes of the group's tensors.
    pub tensors: Vec<(String, Vec<u64>)>,
}

/// Parameters or state of one tensor after the last step.
#[derive(Clone, Debug)]
pub struct Target {
    /// The slot, or `param`.
    pub slot: String,
    /// The tensor.
    pub tensor: String,
    /// The truth.
    pub expect: Vec<f64>,
    /// The values of the other implementation in f32.
    pub peer: Option<Vec<f64>>,
}

impl Target {
    /// `param/NAME` or `SLOT/NAME`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.slot, self.tensor)
    }
}

impl Trajectory {
    /// Reads a file.
    ///
    /// # Errors
    /// An [`Error`] that names the defect.
    pub fn read(path: &Path) -> Result<Self, Error> {
        // The length of a device or a pipe is not known.
        if !std::fs::metadata(path).map_err(Error::Io)?.is_file() {
            return Err(Error::Io(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        Self::parse(&std::fs::read(path).map_err(Error::Io)?)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// An [`Error`] that names the defect.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (mut store, metadata) = Store::open(bytes)?;
        let metadata = Metadata::parse(metadata.as_ref())?;
        if let Some(name) = store.name_after(&["rows/", "mask/"]) {
            return Err(Error::Rows { name });
        }
        let at_least_0 = |x: f64| x >= 0.0;
        let lr = store.schedule("lr", None, at_least_0, "finite and at least 0")?;
        let lr = lr.ok_or_else(|| Error::MissingTensor { name: "lr".into() })?;
        let steps = Some(lr.len());
        let momentum = store.schedule("momentum", steps, at_least_0, "finite and at least 0")?;
        let loss_scale = store.schedule("loss_scale", steps, |x| x > 0.0, "finite and greater than 0")?;

        let mut initial: HashMap<String, (Vec<u64>, Vec<f32>)> = HashMap::new();
        let names = store.names_after("param/");
        if names.is_empty() {
            return Err(Error::MissingTensor { name: "param/…".into() });
        }
        for name in &names {
            initial.insert(name.clone(), store.f32(&format!("param/{name}"))?);
        }
        let groups = group(metadata.rule, metadata.groups, &names, &initial)?;
        let tensors: Vec<_> = groups.iter().flat_map(|g| &g.tensors).collect();
        let params = tensors.iter().flat_map(|(name, _)| &initial[name].1).copied().collect();
        let mut grads = Vec::with_capacity(lr.len());
        for t in 1..=lr.len() {
            let mut flat = Vec::new();
            for (name, shape) in &tensors {
                flat.extend(store.f32_of_shape(&format!("grad/{t}/{name}"), shape, name)?);
            }
            grads.push(flat);
        }
        let mut targets = Vec::new();
        let mut expected = store.slots();
        for (name, shape) in &tensors {
            // The parameters are always compared: a file without expected values could not fail.
            let mut slots = expected.remove(name).unwrap_or_default();
            slots.retain(|slot| slot != "param");
            slots.insert(0, "param".into());
            for slot in slots {
                let expect = store.f64_of_shape(&format!("expect/{slot}/{name}"), shape, name)?;
                let peer = store.peer(&format!("peer/{slot}/{name}"), shape, name)?;
                targets.push(Target { slot, tensor: name.clone(), expect, peer });
            }
        }
        store.refuse_rest(lr.len())?;
        Ok(Self {
            source: metadata.source,
            clip: metadata.clip,
            groups,
            skip_nonfinite: metadata.skip_nonfinite,
            unread_metadata: metadata.unread,
            lr,
            momentum,
            loss_scale,
            params,
            grads,
            targets,
        })
    }

    /// The names of the run's rules, each once, in the order of the groups.
    #[must_use]
    pub fn rules(&self) -> String {
        let mut names = Vec::new();
        for group in &self.groups {
            if !names.contains(&group.rule.name()) {
                names.push(group.rule.name());
            }
        }
        names.join(" + ")
    }

    /// The number of steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.lr.len()
    }
}

/// Puts every tensor into its group.
fn group(
    rule: Option<AnyRule>,
    entries: Option<Vec<metadata::Group>>,
    names: &[String],
    tensors: &HashMap<String, (Vec<u64>, Vec<f32>)>,
) -> Result<Vec<Group>, Error> {
    let with_shape = |name: &String| (name.clone(), tensors[name].0.clone());
    let Some(entries) = entries else {
        let rule = rule.ok_or(Error::MissingMetadata { key: "optimizer" })?;
        let tensors = names.iter().map(with_shape).collect();
        return Ok(vec![Group { name: "all".into(), rule, lr_factor: 1.0, tensors }]);
    };
    let mut holder: HashMap<&str, &str> = HashMap::new();
    for entry in &entries {
        for tensor in &entry.params {
            if !tensors.contains_key(tensor) {
                return Err(Error::GroupOfUnknown { group: entry.name.clone(), tensor: tensor.clone() });
            }
            if let Some(first) = holder.insert(tensor, &entry.name) {
                return Err(Error::GroupedTwice {
                    tensor: tensor.clone(),
                    first: first.into(),
                    second: entry.name.clone(),
                });
            }
        }
    }
    if let Some(tensor) = names.iter().find(|name| !holder.contains_key(name.as_str())) {
        return Err(Error::Ungrouped { tensor: tensor.clone() });
    }
    let groups = entries.into_iter().map(|entry| {
        let metadata::Group { name, rule, lr_factor, params } = entry;
        Group { name, rule, lr_factor, tensors: params.iter().map(with_shape).collect() }
    });
    Ok(groups.collect())
}
