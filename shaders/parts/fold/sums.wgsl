// The start of each target's list and the end of the last list, then the lists: the numbers of the partial
// sums, in order.
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> partials: array<Partial>;

// Adds every `step`th partial sum of a target, from a first one on.
fn sums_of(index: u32, first: u32, step: u32) -> Partials {
    var sums: Partials;
    let end = targets[index + 1u];
    for (var i = targets[index] + first; i < end; i += step) {
        for (var q = 0u; q < QUANTITIES; q++) {
            sums[q] = joined(sums[q], partials[targets[i] * QUANTITIES + q]);
        }
    }
    return sums;
}
