// The squares of a group's gradients.

@group(0) @binding(2) var<storage, read_write> folded: array<Partial>;

fn finish(index: u32, first: u32, step: u32, totals: Partials) {
    if first == 0u {
        folded[index] = totals[0];
    }
}
