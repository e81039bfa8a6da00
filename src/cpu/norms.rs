//! Sums of squares.

use multiversion::multiversion;

/// Sums of squares of a tensor's part in a task: of its parameters and of their change in the update. The
/// gradient scan uses the first sum alone, for gradients. Squares of f32 are exact in f64 and cannot
/// overflow.
pub(super) type Sums = [f64; 2];

/// The number of partial sums: enough that loops over them are vectorised. It decides the order of a sum, and
/// so its last bits.
pub(super) const LANES: usize = 128;

/// Squares, beside each other.
pub(super) struct Squares([f64; LANES]);

impl Squares {
    pub(super) fn new() -> Self {
        Self([0.0; LANES])
    }

    /// In pairs.
    pub(super) fn sum(&mut self) -> f64 {
        let mut half = LANES / 2;
        while half > 0 {
            let (low, high) = self.0.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
            half /= 2;
        }
        self.0[0]
    }

    #[inline(always)]
    pub(super) fn add(&mut self, x: &[f32]) {
        let (tiles, rest) = x.as_chunks::<LANES>();
        for x in tiles {
            for (sum, &x) in self.0.iter_mut().zip(x) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in self.0.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn add_squares(squares: &mut Squares, x: &[f32]) {
    squares.add(x);
}
