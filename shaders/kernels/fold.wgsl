// Partial sums, added up by target: a workgroup each.

// Where each target's partial sums begin in the list behind, and where the last one's end; then the numbers
// of all, in order.
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> partials: array<Partial>;

// The target's sums of each quantity.
var<workgroup> totals: array<Partial, QUANTITIES>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn fold(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let target_index = workgroup.x;
    let end = targets[target_index + 1u];
    for (var q = 0u; q < QUANTITIES; q++) {
        var sum = Partial();
        for (var i = targets[target_index] + thread; i < end; i += WORKGROUP_SIZE) {
            sum = joined(sum, partials[targets[i] * QUANTITIES + q]);
        }
        let all = of_workgroup(thread, sum);
        if thread == 0u {
            totals[q] = all;
        }
    }
    workgroupBarrier();
    finish(target_index, thread);
}
