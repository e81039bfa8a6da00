//! Rules × options × sizes, every element of every step against the reference.

use crate::common::{Cases, check_cpu, check_gpu, single};
use wgpu_optim::{Layout, for_each_rule};

const SIZES: [u64; 9] = [1, 3, 4, 5, 255, 256, 257, 1_023, 65_537];
const STEPS: usize = 4;

fn all_options<R: Cases>(check: impl Fn(&Layout<R>, u64, &str) -> f64) {
    for (name, rule) in R::cases() {
        let worst = SIZES.map(|size| check(&single(rule, size), size, &format!("{name}, {size} elements")));
        let worst = worst.into_iter().fold(0.0, f64::max);
        println!("{:8} {name:20} worst {worst:.2} of {} ulp", R::NAME, R::MAX_ULPS);
    }
}

macro_rules! on_gpu {
    ($($rule:ty),*) => {
        $({
            let Some(gpu) = harness::test_gpu() else { return };
            all_options::<$rule>(|layout, seed, context| check_gpu(&gpu, layout, seed, STEPS, context));
        })*
    };
}

macro_rules! on_cpu {
    ($($rule:ty),*) => {
        $(all_options::<$rule>(|layout, seed, context| check_cpu(layout, seed, STEPS, context));)*
    };
}

#[test]
fn every_option_at_every_size_on_the_gpu() {
    for_each_rule!(on_gpu);
}

#[test]
fn every_option_at_every_size_on_the_cpu() {
    for_each_rule!(on_cpu);
}
