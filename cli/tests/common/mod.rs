//! Small trajectory files to take apart.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use optim::replay::{On, run};
use optim::trajectory::{Error, Trajectory};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};

pub(crate) const STEPS: usize = 4;

/// A file in parts.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

fn wave(i: usize) -> f64 {
    // Two of them agree in no step, and none is zero.
    (i as f64 * 0.7 + 0.3).sin()
}

impl Parts {
    /// A run of four steps with tensors `a` (2 × 3) and `b` (5) that expects the reference's result.
    pub(crate) fn new(optimizer: &str) -> Self {
        let metadata = [("format", "optim-trajectory/1"), ("optimizer", optimizer)];
        let metadata = metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let mut parts = Self { metadata, tensors: BTreeMap::new() };
        parts.f64("lr", &[STEPS], &[0.1, 0.05, 0.02, 0.01]);
        for (k, (name, shape)) in [("a", vec![2, 3]), ("b", vec![5])].into_iter().enumerate() {
            let len = shape.iter().product::<usize>();
            let values = |seed: usize| (0..len).map(|i| wave(seed * 31 + i) as f32).collect::<Vec<_>>();
            parts.f32(&format!("param/{name}"), &shape, &values(k));
            parts.f64(&format!("expect/param/{name}"), &shape, &vec![0.0; len]);
            for t in 1..=STEPS {
                parts.f32(&format!("grad/{t}/{name}"), &shape, &values(10 * t + k));
            }
        }
        parts
    }

    /// Fills in the reference's result as the truth, and the CPU engine's as the peer.
    pub(crate) fn solved(mut self) -> Self {
        let trajectory = self.parse().expect("a good file");
        let truth = run(&trajectory, On::Reference, &mut || ()).expect("a good run");
        let peer = run(&trajectory, On::Cpu, &mut || ()).expect("a good run");
        for ((target, truth), peer) in trajectory.targets.iter().zip(truth).zip(peer) {
            let shape = self.tensors[&format!("param/{}", target.tensor)].1.clone();
            self.f64(&format!("expect/{}", target.name()), &shape, &truth);
            self.f64(&format!("peer/{}", target.name()), &shape, &peer);
        }
        self
    }

    pub(crate) fn meta(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.tensors.remove(name).expect("it was there");
        self
    }

    pub(crate) fn f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), bytes));
    }

    pub(crate) fn f64(&mut self, name: &str, shape: &[usize], values: &[f64]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.insert(name.into(), (Dtype::F64, shape.to_vec(), bytes));
    }

    pub(crate) fn with_f32(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.f32(name, shape, values);
        self
    }

    pub(crate) fn with_f64(mut self, name: &str, shape: &[usize], values: &[f64]) -> Self {
        self.f64(name, shape, values);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
        });
        safetensors::serialize(views, Some(self.metadata.clone())).expect("a file")
    }

    pub(crate) fn parse(&self) -> Result<Trajectory, Error> {
        Trajectory::parse(&self.bytes())
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
