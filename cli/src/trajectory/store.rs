//! The tensors of a safetensors file, each taken once and by its type. A tensor that is not taken is an
//! error.

use super::Error;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// The format's own bound on the header, that of the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH: u64 = 8;

#[derive(Debug)]
pub(super) struct Store<'a> {
    tensors: BTreeMap<String, TensorView<'a>>,
}

/// The part of a header entry with the tensor's end.
#[derive(Deserialize)]
struct Entry {
    data_offsets: (u64, u64),
}

impl<'a> Store<'a> {
    /// The tensors and the metadata of a file.
    pub(super) fn open(bytes: &'a [u8]) -> Result<(Self, Option<HashMap<String, String>>), Error> {
        check_extent(bytes)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let tensors = SafeTensors::deserialize(bytes)?.tensors().into_iter().collect();
        Ok((Self { tensors }, metadata.metadata().clone()))
    }

    /// The rest of the names that begin with `prefix`, in order.
    pub(super) fn names_after(&self, prefix: &str) -> Vec<String> {
        self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).map(Into::into).collect()
    }

    /// The first name that has one of the prefixes.
    pub(super) fn name_after(&self, prefixes: &[&str]) -> Option<String> {
        let found = self.tensors.keys().find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        found.cloned()
    }

    /// The slots that the file expects, by tensor.
    pub(super) fn slots(&self) -> HashMap<String, Vec<String>> {
        let mut slots: HashMap<_, Vec<_>> = HashMap::new();
        for name in self.names_after("expect/") {
            if let Some((slot, tensor)) = name.split_once('/') {
                slots.entry(tensor.to_owned()).or_default().push(slot.to_owned());
            }
        }
        slots
    }

    fn take(&mut self, name: &str) -> Result<TensorView<'a>, Error> {
        self.tensors.remove(name).ok_or_else(|| Error::MissingTensor { name: name.into() })
    }

    /// One number per step; `None` without the tensor.
    pub(super) fn schedule(
        &mut self,
        name: &str,
        steps: Option<usize>,
        good: impl Fn(f64) -> bool,
        bound: &'static str,
    ) -> Result<Option<Vec<f64>>, Error> {
        let Some(tensor) = self.tensors.remove(name) else { return Ok(None) };
        let values = f64s(name, &tensor)?;
        let expected = match (tensor.shape(), steps) {
            (&[n], None) if n > 0 => None,
            (&[n], Some(steps)) if n == steps => None,
            (_, None) => Some("[T], one number per step, T ≥ 1".into()),
            (_, Some(steps)) => Some(format!("[{steps}], one number per step, as in \"lr\"")),
        };
        if let Some(expected) = expected {
            return Err(Error::Shape { name: name.into(), found: tensor.shape().to_vec(), expected });
        }
        let bad = values.iter().enumerate().find(|(_, x)| !(x.is_finite() && good(**x)));
        if let Some((i, &value)) = bad {
            return Err(Error::Value { field: format!("{name} of step {}", i + 1), value, bound });
        }
        Ok(Some(values))
    }

    /// Shape and elements of an F32 tensor.
    pub(super) fn f32(&mut self, name: &str) -> Result<(Vec<u64>, Vec<f32>), Error> {
        let tensor = self.take(name)?;
        let shape = tensor.shape().iter().map(|&n| n as u64).collect();
        Ok((shape, f32s(name, &tensor)?))
    }

    /// The elements of an F32 tensor that must have the shape of parameter `param`.
    pub(super) fn f32_of_shape(&mut self, name: &str, shape: &[u64], param: &str) -> Result<Vec<f32>, Error> {
        let tensor = self.take(name)?;
        check_shape(name, &tensor, shape, param)?;
        f32s(name, &tensor)
    }

    /// The elements of an F64 tensor that must have the shape of parameter `param`.
    pub(super) fn f64_of_shape(&mut self, name: &str, shape: &[u64], param: &str) -> Result<Vec<f64>, Error> {
        let tensor = self.take(name)?;
        check_shape(name, &tensor, shape, param)?;
        f64s(name, &tensor)
    }

    /// The elements of an F32 or F64 tensor, `None` without it.
    pub(super) fn peer(&mut self, name: &str, shape: &[u64], param: &str) -> Result<Option<Vec<f64>>, Error> {
        let Some(tensor) = self.tensors.remove(name) else { return Ok(None) };
        check_shape(name, &tensor, shape, param)?;
        let values = match tensor.dtype() {
            Dtype::F32 => f32s(name, &tensor)?.into_iter().map(f64::from).collect(),
            Dtype::F64 => f64s(name, &tensor)?,
            found => return Err(Error::Dtype { name: name.into(), found, expected: "F32 or F64" }),
        };
        Ok(Some(values))
    }

    /// Refuses tensors that were not taken.
    pub(super) fn refuse_rest(&self, steps: usize) -> Result<(), Error> {
        let Some(name) = self.tensors.keys().next() else { return Ok(()) };
        let reason = if name.starts_with("grad/") {
            format!(
                "gradients are \"grad/t/NAME\" with t from 1 to {steps} and NAME that of a \"param/NAME\""
            )
        } else if name.starts_with("expect/") {
            "expected values are \"expect/param/NAME\" or \"expect/SLOT/NAME\" of a \"param/NAME\"".into()
        } else if name.starts_with("peer/") {
            "it has no \"expect/…\" of the same name beside it".into()
        } else {
            "known are lr, momentum, loss_scale, param/…, grad/…, expect/… and peer/…".into()
        };
        Err(Error::UnexpectedTensor { name: name.clone(), reason })
    }
}

/// Checks the sizes that the header announces against the file's, before anything relies on them.
fn check_extent(bytes: &[u8]) -> Result<(), Error> {
    let size = bytes.len() as u64;
    let truncated = |what: &str, end: u64| Error::Truncated { what: what.into(), end, size };
    let Some((length, _)) = bytes.split_first_chunk() else {
        return Err(truncated("the length of the header", LENGTH));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(Error::Value {
            field: "length of the header".into(),
            value: length as f64,
            bound: "at most 100000000",
        });
    }
    let start = LENGTH + length;
    let Some(header) = bytes.get(LENGTH as usize..start as usize) else {
        return Err(truncated("the header", start));
    };
    // The safetensors crate reports everything else that is wrong with the header.
    let Ok(entries) = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(header) else {
        return Ok(());
    };
    let mut last = start;
    for (name, entry) in entries {
        if let Ok(Entry { data_offsets: (_, end) }) = serde_json::from_value(entry) {
            let end = start.saturating_add(end);
            if end > size {
                return Err(truncated(&format!("tensor {name:?}"), end));
            }
            last = last.max(end);
        }
    }
    if last < size {
        return Err(Error::Trailing { end: last, size });
    }
    Ok(())
}

fn check_shape(name: &str, tensor: &TensorView<'_>, shape: &[u64], param: &str) -> Result<(), Error> {
    if tensor.shape().iter().map(|&n| n as u64).eq(shape.iter().copied()) {
        return Ok(());
    }
    let expected = format!("{shape:?} as \"param/{param}\" has");
    Err(Error::Shape { name: name.into(), found: tensor.shape().to_vec(), expected })
}

// Read byte by byte: tensors are not aligned.
fn f32s(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, Error> {
    check_dtype(name, tensor, Dtype::F32, "F32")?;
    let (values, _) = tensor.data().as_chunks();
    Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn f64s(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f64>, Error> {
    check_dtype(name, tensor, Dtype::F64, "F64")?;
    let (values, _) = tensor.data().as_chunks();
    Ok(values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

fn check_dtype(
    name: &str,
    tensor: &TensorView<'_>,
    dtype: Dtype,
    expected: &'static str,
) -> Result<(), Error> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(Error::Dtype { name: name.into(), found: tensor.dtype(), expected })
}
