//! A decoder-only transformer (Vaswani et al., 2017): learned positions, pre-norm blocks with RMSNorm (Zhang
//! and Sennrich, 2019) and without biases, causal attention, ReLU.

use super::{Tensors, TensorsMut, cross_entropy, num, relu, relu_backward, softmax};
use crate::digits::Random;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayViewMut2, Axis, NdFloat, s};
use wgpu_optim::{AdamW, Error, Group, Layout};

/// Added to mean squares.
const EPS: f64 = 1e-5;

/// The sizes of the transformer.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub vocabulary: usize,
    pub context: usize,
    pub width: usize,
    pub heads: usize,
    pub blocks: usize,
}

pub(crate) struct Transformer {
    shape: Shape,
    pub layout: Layout,
}

impl Transformer {
    pub(crate) fn new(shape: Shape) -> Result<Self, Error> {
        let [v, t, d] = [shape.vocabulary, shape.context, shape.width].map(|n| n as u64);
        let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let mut decay = Group::new("decay", adamw).tensor("tokens", [v, d]).tensor("positions", [t, d]);
        let mut gains = Group::new("no_decay", AdamW { weight_decay: 0.0, ..adamw });
        for i in 0..shape.blocks {
            decay = decay
                .tensor(format!("{i}.qkv"), [d, 3 * d])
                .tensor(format!("{i}.out"), [d, d])
                .tensor(format!("{i}.up"), [d, 4 * d])
                .tensor(format!("{i}.down"), [4 * d, d]);
            gains = gains.tensor(format!("{i}.attention"), [d]).tensor(format!("{i}.mlp"), [d]);
        }
        let layout = Layout::new([decay.tensor("scores", [d, v]), gains.tensor("norm", [d])])?;
        Ok(Self { shape, layout })
    }

    /// Weights uniform with variance 1 / rows, those that end a branch of a block with 1 / (2 · blocks) of
    /// that (Radford et al., 2019); gains 1.
    pub(crate) fn initial_parameters(&self, random: &mut Random) -> Vec<f32> {
        let mut params = vec![0.0; self.layout.len() as usize];
        for tensor in self.layout.tensors() {
            let params = &mut params[tensor.range()];
            let [rows, _] = tensor.shape[..] else {
                params.fill(1.0);
                continue;
            };
            let ends = tensor.name.ends_with(".out") || tensor.name.ends_with(".down");
            let branches = if ends { 2 * self.shape.blocks } else { 1 };
            let bound = (3.0 / (rows as usize * branches) as f64).sqrt();
            params.fill_with(|| (bound * (2.0 * random.uniform() - 1.0)) as f32);
        }
        params
    }

    /// The mean loss of `windows`, and with `grads` its gradients. A window has one character more than the
    /// context.
    pub(crate) fn loss<F: NdFloat>(&self, params: &[F], windows: &[&[u8]], grads: Option<&mut [F]>) -> f64 {
        let Shape { context, width, blocks, .. } = self.shape;
        let params = Tensors { layout: &self.layout, flat: params };
        let inputs = || windows.iter().flat_map(|window| window[..context].iter().copied().map(usize::from));
        let targets = windows.iter().flat_map(|window| window[1..=context].iter().copied().map(usize::from));

        let mut x = Array2::zeros((windows.len() * context, width));
        let (tokens, positions) = (params.matrix("tokens"), params.matrix("positions"));
        for (i, (mut x, token)) in x.rows_mut().into_iter().zip(inputs()).enumerate() {
            x += &tokens.row(token);
            x += &positions.row(i % context);
        }
        let traces: Vec<_> = (0..blocks).map(|i| self.block(&params, i, &mut x)).collect();
        let norm = Norm::new(&x, params.vector("norm"));
        let mut scores = norm.out.dot(&params.matrix("scores"));
        let loss = cross_entropy(&mut scores, targets);
        let Some(flat) = grads else { return loss };

        flat.fill(F::zero());
        let mut grads = TensorsMut { layout: &self.layout, flat };
        let by_scores = scores;
        add_product(&norm.out.t(), &by_scores, &mut grads.matrix("scores"));
        let by_norm = by_scores.dot(&params.matrix("scores").t());
        let mut by_x = Array2::zeros(x.dim());
        norm.backward(&by_norm, &params, &mut grads, "norm", &mut by_x);
        for (i, trace) in traces.iter().enumerate().rev() {
            self.block_backward(&params, &mut grads, i, trace, &mut by_x);
        }
        for (i, (by_x, token)) in by_x.rows().into_iter().zip(inputs()).enumerate() {
            let mut tokens = grads.matrix("tokens");
            tokens.row_mut(token).zip_mut_with(&by_x, |g, &x| *g += x);
            let mut positions = grads.matrix("positions");
            positions.row_mut(i % context).zip_mut_with(&by_x, |g, &x| *g += x);
        }
        loss
    }

    /// Adds a block's two branches to `x`.
    fn block<F: NdFloat>(&self, params: &Tensors<'_, F>, i: usize, x: &mut Array2<F>) -> Trace<F> {
        let matrix = |name| params.matrix(&format!("{i}.{name}"));
        let attention = Norm::new(x, params.vector(&format!("{i}.attention")));
        let qkv = attention.out.dot(&matrix("qkv"));
        let (weights, mixed) = self.attend(&qkv);
        add_product(&mixed, &matrix("out"), &mut x.view_mut());
        let mlp = Norm::new(x, params.vector(&format!("{i}.mlp")));
        let mut hidden = mlp.out.dot(&matrix("up"));
        relu(&mut hidden);
        add_product(&hidden, &matrix("down"), &mut x.view_mut());
        Trace { attention, qkv, weights, mixed, mlp, hidden }
    }

    /// Turns gradients by a block's output into gradients by its input.
    fn block_backward<F: NdFloat>(
        &self,
        params: &Tensors<'_, F>,
        grads: &mut TensorsMut<'_, F>,
        i: usize,
        trace: &Trace<F>,
        by_x: &mut Array2<F>,
    ) {
        let name = |name| format!("{i}.{name}");
        let matrix = |of| params.matrix(&name(of));
        add_product(&trace.hidden.t(), by_x, &mut grads.matrix(&name("down")));
        let mut by_hidden = by_x.dot(&matrix("down").t());
        relu_backward(&mut by_hidden, &trace.hidden);
        add_product(&trace.mlp.out.t(), &by_hidden, &mut grads.matrix(&name("up")));
        let by_norm = by_hidden.dot(&matrix("up").t());
        trace.mlp.backward(&by_norm, params, grads, &name("mlp"), by_x);

        add_product(&trace.mixed.t(), by_x, &mut grads.matrix(&name("out")));
        let by_mixed = by_x.dot(&matrix("out").t());
        let by_qkv = self.attend_backward(trace, &by_mixed);
        add_product(&trace.attention.out.t(), &by_qkv, &mut grads.matrix(&name("qkv")));
        let by_norm = by_qkv.dot(&matrix("qkv").t());
        trace.attention.backward(&by_norm, params, grads, &name("attention"), by_x);
    }

    /// The weights of every window's heads, and the values mixed with them.
    fn attend<F: NdFloat>(&self, qkv: &Array2<F>) -> (Array3<F>, Array2<F>) {
        let Shape { context, width, .. } = self.shape;
        let mut mixed = Array2::zeros((qkv.nrows(), width));
        let mut weights = Array3::zeros((qkv.nrows() / context * self.shape.heads, context, context));
        for (i, mut weights) in weights.outer_iter_mut().enumerate() {
            let [q, k, v] = [0, 1, 2].map(|part| self.head(qkv, i, part));
            general_mat_mul(self.scale(), &q, &k.t(), F::zero(), &mut weights);
            for (at, mut row) in weights.rows_mut().into_iter().enumerate() {
                let (seen, ahead) = row.as_slice_mut().expect("rows are contiguous").split_at_mut(at + 1);
                softmax(seen);
                ahead.fill(F::zero());
            }
            add_product(&weights, &v, &mut self.head_mut(&mut mixed, i, 0));
        }
        (weights, mixed)
    }

    fn attend_backward<F: NdFloat>(&self, trace: &Trace<F>, by_mixed: &Array2<F>) -> Array2<F> {
        let mut by_qkv = Array2::zeros(trace.qkv.dim());
        for (i, weights) in trace.weights.outer_iter().enumerate() {
            let [q, k, v] = [0, 1, 2].map(|part| self.head(&trace.qkv, i, part));
            let by_mixed = self.head(by_mixed, i, 0);
            let mut by_scores = by_mixed.dot(&v.t());
            for (mut by_scores, weights) in by_scores.rows_mut().into_iter().zip(weights.rows()) {
                let mean = by_scores.dot(&weights);
                by_scores.zip_mut_with(&weights, |g, &w| *g = w * (*g - mean));
            }
            let scale = self.scale();
            general_mat_mul(scale, &by_scores, &k, F::zero(), &mut self.head_mut(&mut by_qkv, i, 0));
            general_mat_mul(scale, &by_scores.t(), &q, F::zero(), &mut self.head_mut(&mut by_qkv, i, 1));
            add_product(&weights.t(), &by_mixed, &mut self.head_mut(&mut by_qkv, i, 2));
        }
        by_qkv
    }

    /// The scores' factor.
    fn scale<F: NdFloat>(&self) -> F {
        num(((self.shape.width / self.shape.heads) as f64).sqrt().recip())
    }

    /// The place of head `i` of all windows' queries (part 0), keys (1) or values (2).
    fn place(&self, i: usize, part: usize) -> [std::ops::Range<usize>; 2] {
        let Shape { context, width, heads, .. } = self.shape;
        let (window, head, size) = (i / heads, i % heads, width / heads);
        let [row, column] = [window * context, part * width + head * size];
        [row..row + context, column..column + size]
    }

    fn head<'a, F>(&self, x: &'a Array2<F>, i: usize, part: usize) -> ArrayView2<'a, F> {
        let [rows, columns] = self.place(i, part);
        x.slice(s![rows, columns])
    }

    fn head_mut<'a, F>(&self, x: &'a mut Array2<F>, i: usize, part: usize) -> ArrayViewMut2<'a, F> {
        let [rows, columns] = self.place(i, part);
        x.slice_mut(s![rows, columns])
    }
}

/// Values of the forward pass for a block's backward pass.
struct Trace<F> {
    attention: Norm<F>,
    qkv: Array2<F>,
    weights: Array3<F>,
    mixed: Array2<F>,
    mlp: Norm<F>,
    hidden: Array2<F>,
}

/// x / √(mean x² + ε), and that times a gain.
struct Norm<F> {
    unit: Array2<F>,
    inverse: Array1<F>,
    out: Array2<F>,
}

impl<F: NdFloat> Norm<F> {
    fn new(x: &Array2<F>, gain: ArrayView1<'_, F>) -> Self {
        let share = num::<F>(1.0 / x.ncols() as f64);
        let inverse = x.map_axis(Axis(1), |row| (row.dot(&row) * share + num(EPS)).sqrt().recip());
        let unit = x * &inverse.view().insert_axis(Axis(1));
        let out = &unit * &gain;
        Self { unit, inverse, out }
    }

    /// Adds the gradients by `x`.
    fn backward(
        &self,
        by_out: &Array2<F>,
        params: &Tensors<'_, F>,
        grads: &mut TensorsMut<'_, F>,
        name: &str,
        by_x: &mut Array2<F>,
    ) {
        grads.vector(name).zip_mut_with(&(by_out * &self.unit).sum_axis(Axis(0)), |g, &x| *g += x);
        let by_unit = by_out * &params.vector(name);
        let share = num::<F>(1.0 / by_out.ncols() as f64);
        let rows = by_x.rows_mut().into_iter().zip(by_unit.rows()).zip(self.unit.rows()).zip(&self.inverse);
        for (((mut by_x, by_unit), unit), &inverse) in rows {
            let along = by_unit.dot(&unit) * share;
            ndarray::Zip::from(&mut by_x)
                .and(&by_unit)
                .and(&unit)
                .for_each(|x, &g, &u| *x += inverse * (g - along * u));
        }
    }
}

/// c + a b
fn add_product<F, A, B>(
    a: &ndarray::ArrayBase<A, ndarray::Ix2>,
    b: &ndarray::ArrayBase<B, ndarray::Ix2>,
    c: &mut ArrayViewMut2<'_, F>,
) where
    F: NdFloat,
    A: ndarray::Data<Elem = F>,
    B: ndarray::Data<Elem = F>,
{
    general_mat_mul(F::one(), a, b, F::one(), c);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_the_loss() {
        let shape = Shape { vocabulary: 7, context: 5, width: 8, heads: 2, blocks: 2 };
        let network = Transformer::new(shape).unwrap();
        let mut random = Random(1);
        let start = network.initial_parameters(&mut random);
        // Gains other than 1 too.
        let params: Vec<_> = start.iter().map(|&p| f64::from(p) + 0.2 * random.uniform()).collect();
        let windows: [&[u8]; 2] = [&[0, 3, 3, 6, 1, 2], &[5, 4, 0, 1, 6, 6]];
        crate::nets::tests::check_gradients(&params, |params, grads| network.loss(params, &windows, grads));
    }

    #[test]
    fn nothing_is_seen_ahead() {
        let shape = Shape { vocabulary: 4, context: 6, width: 8, heads: 2, blocks: 1 };
        let network = Transformer::new(shape).unwrap();
        let mut random = Random(2);
        let mut qkv = Array2::zeros((2 * shape.context, 3 * shape.width));
        qkv.mapv_inplace(|_: f64| 8.0 * random.uniform() - 4.0);
        let (weights, mixed) = network.attend(&qkv);
        for ((i, at, seen), &weight) in weights.indexed_iter() {
            assert_eq!(weight > 0.0, seen <= at, "head {i}, position {at}, {seen}");
        }
        // The first position sees only itself.
        for window in [0, shape.context] {
            assert_eq!(mixed.row(window), qkv.slice(s![window, 2 * shape.width..]));
        }
    }
}
