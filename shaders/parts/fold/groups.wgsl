// The squares of a group's gradients.

@group(0) @binding(2) var<storage, read_write> folded: array<Partial>;

fn finish(target_index: u32, thread: u32) {
    if thread == 0u {
        folded[target_index] = totals[0];
    }
}
