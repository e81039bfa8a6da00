//! Rules × options × sizes, every element of every step against the reference.

use crate::common::{Case, cases, check_cpu, check_gpu, single};
use wgpu_optim::Layout;

const SIZES: [u64; 9] = [1, 3, 4, 5, 255, 256, 257, 1_023, 65_537];
const STEPS: usize = 4;

fn all_options(check: impl Fn(&Layout, u64, &str) -> f64) {
    for Case { name, rule } in cases() {
        let check = |size| check(&single(rule.clone(), size), size, &format!("{name}, {size} elements"));
        let worst = SIZES.map(check).into_iter().fold(0.0, f64::max);
        let budget = rule.spec().max_ulps.unwrap();
        println!("{:8} {name:20} worst {worst:.2} of {budget} ulp", rule.name());
    }
}

#[test]
fn every_option_at_every_size_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    all_options(|layout, seed, context| check_gpu(&gpu, layout, seed, STEPS, context));
}

#[test]
fn every_option_at_every_size_on_the_cpu() {
    all_options(|layout, seed, context| check_cpu(layout, seed, STEPS, context));
}
