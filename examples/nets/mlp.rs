//! The network for the digits with one hidden layer, as in `examples/digits/mlp.wgsl`.

use super::{Tensors, TensorsMut, cross_entropy, relu, relu_backward};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, NdFloat};
use wgpu_optim::Layout;

/// The scores of `images`, one per row, and the hidden layer.
pub(crate) fn scores<F: NdFloat>(
    layout: &Layout,
    params: &[F],
    images: ArrayView2<'_, F>,
) -> (Array2<F>, Array2<F>) {
    let params = Tensors { layout, flat: params };
    let mut hidden = images.dot(&params.matrix("W1")) + params.vector("B1");
    relu(&mut hidden);
    (hidden.dot(&params.matrix("W2")) + params.vector("B2"), hidden)
}

/// The mean loss of `images`, one per row, and with `grads` its gradients.
pub(crate) fn loss<F: NdFloat>(
    layout: &Layout,
    params: &[F],
    images: ArrayView2<'_, F>,
    labels: &[u32],
    grads: Option<&mut [F]>,
) -> f64 {
    let (mut scores, hidden) = scores(layout, params, images);
    let params = Tensors { layout, flat: params };
    let loss = cross_entropy(&mut scores, labels.iter().map(|&label| label as usize));
    if let Some(flat) = grads {
        let mut grads = TensorsMut { layout, flat };
        let by_scores = scores;
        let mut by_hidden = by_scores.dot(&params.matrix("W2").t());
        relu_backward(&mut by_hidden, &hidden);
        general_mat_mul(F::one(), &hidden.t(), &by_scores, F::zero(), &mut grads.matrix("W2"));
        general_mat_mul(F::one(), &images.t(), &by_hidden, F::zero(), &mut grads.matrix("W1"));
        grads.vector("B2").assign(&by_scores.sum_axis(Axis(0)));
        grads.vector("B1").assign(&by_hidden.sum_axis(Axis(0)));
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits::{CLASSES, PIXELS, Random, images, initial_parameters, layout};

    #[test]
    fn gradients_are_those_of_the_loss() {
        const IMAGES: usize = 5;
        let layout = layout().unwrap();
        let (pixels, labels) = images().unwrap();
        let pixels: Vec<_> = pixels[..IMAGES * PIXELS].iter().map(|&x| f64::from(x)).collect();
        let images = ArrayView2::from_shape((IMAGES, PIXELS), &pixels).unwrap();
        let start = initial_parameters(&layout, &mut Random(1));
        let mut params: Vec<_> = start.iter().map(|&p| f64::from(p)).collect();
        // Biases too.
        (params.iter_mut().rev().zip(1..)).take(CLASSES + 32).for_each(|(p, i)| *p = 0.01 * f64::from(i));
        crate::nets::tests::check_gradients(&params, |params, grads| {
            loss(&layout, params, images, &labels[..IMAGES], grads)
        });
    }
}
