//! Small networks on the CPU with hand-written gradients. They are generic over the number, so that `f64` can
//! check what `f32` trains.

pub(crate) mod mlp;
pub(crate) mod transformer;

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, NdFloat, Zip};
use wgpu_optim::Layout;

pub(crate) fn num<F: NdFloat>(x: f64) -> F {
    F::from(x).expect("every number of these networks is a float")
}

/// The tensors of flat parameters.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a, F> {
    pub layout: &'a Layout,
    pub flat: &'a [F],
}

impl<'a, F> Tensors<'a, F> {
    pub(crate) fn matrix(&self, name: &str) -> ArrayView2<'a, F> {
        let (range, shape) = place(self.layout, name);
        ArrayView2::from_shape(shape, &self.flat[range]).expect("a layout's shape has its length")
    }

    pub(crate) fn vector(&self, name: &str) -> ArrayView1<'a, F> {
        ArrayView1::from(&self.flat[place(self.layout, name).0])
    }
}

/// The tensors of flat gradients.
pub(crate) struct TensorsMut<'a, F> {
    pub layout: &'a Layout,
    pub flat: &'a mut [F],
}

impl<F> TensorsMut<'_, F> {
    pub(crate) fn matrix(&mut self, name: &str) -> ArrayViewMut2<'_, F> {
        let (range, shape) = place(self.layout, name);
        ArrayViewMut2::from_shape(shape, &mut self.flat[range]).expect("a layout's shape has its length")
    }

    pub(crate) fn vector(&mut self, name: &str) -> ArrayViewMut1<'_, F> {
        ArrayViewMut1::from(&mut self.flat[place(self.layout, name).0])
    }
}

/// The place, rows and columns of a tensor; a vector has one row.
fn place(layout: &Layout, name: &str) -> (std::ops::Range<usize>, (usize, usize)) {
    let tensor = layout.tensor(name).expect("a network asks for tensors of its own");
    let columns = tensor.shape.last().map_or(1, |&n| n as usize);
    (tensor.range(), (tensor.len as usize / columns, columns))
}

/// The mean cross-entropy of a batch, in nats; its gradients by the scores take the place of these.
pub(crate) fn cross_entropy<F: NdFloat>(scores: &mut Array2<F>, labels: impl Iterator<Item = usize>) -> f64 {
    let share = num::<F>(1.0 / scores.nrows() as f64);
    let mut loss = 0.0;
    for (mut row, label) in scores.rows_mut().into_iter().zip(labels) {
        softmax(row.as_slice_mut().expect("rows are contiguous"));
        loss -= row[label].to_f64().expect("a float").ln();
        row[label] -= F::one();
        row.mapv_inplace(|x| x * share);
    }
    loss / scores.nrows() as f64
}

/// eˣ / Σ eˣ
pub(crate) fn softmax<F: NdFloat>(row: &mut [F]) {
    let largest = row.iter().copied().fold(F::neg_infinity(), F::max);
    let mut total = F::zero();
    for x in &mut *row {
        *x = (*x - largest).exp();
        total += *x;
    }
    let scale = total.recip();
    row.iter_mut().for_each(|x| *x *= scale);
}

/// max(x, 0)
pub(crate) fn relu<F: NdFloat>(x: &mut Array2<F>) {
    x.mapv_inplace(|x| x.max(F::zero()));
}

/// Gradients by the input of a ReLU, from gradients by its output `out`.
pub(crate) fn relu_backward<F: NdFloat>(gradients: &mut Array2<F>, out: &Array2<F>) {
    Zip::from(gradients).and(out).for_each(|g, &y| {
        if y <= F::zero() {
            *g = F::zero();
        }
    });
}

#[cfg(test)]
pub(crate) mod tests {
    /// The error of a central difference in f64: h² by truncation, ε/h by rounding.
    const TOLERANCE: f64 = 1e-8;

    /// Compares the gradients of `loss` with central differences, in every parameter.
    pub(crate) fn check_gradients(params: &[f64], loss: impl Fn(&[f64], Option<&mut [f64]>) -> f64) {
        const H: f64 = 1e-5;
        let mut grads = vec![0.0; params.len()];
        assert_eq!(loss(params, Some(&mut grads)), loss(params, None));
        for i in 0..params.len() {
            let at = |x| {
                let mut params = params.to_vec();
                params[i] += x;
                loss(&params, None)
            };
            let difference = (at(H) - at(-H)) / (2.0 * H);
            let error = (grads[i] - difference).abs();
            assert!(error <= TOLERANCE, "parameter {i}: {} instead of {difference}", grads[i]);
        }
    }
}
