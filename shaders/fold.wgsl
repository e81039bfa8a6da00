// Partial results, added up by owner: a workgroup each.

// Where each owner's partial results begin in the list behind, and where the last one's end; then the numbers
// of all, in order.
@group(0) @binding(0) var<storage, read> owners: array<u32>;
@group(0) @binding(1) var<storage, read> partials: array<Partial>;

// The owner's sums of each quantity.
var<workgroup> totals: array<Partial, QUANTITIES>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn fold(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let owner = workgroup.x;
    let end = owners[owner + 1u];
    for (var q = 0u; q < QUANTITIES; q++) {
        var sum = Partial();
        for (var i = owners[owner] + thread; i < end; i += WORKGROUP_SIZE) {
            sum = joined(sum, partials[owners[i] * QUANTITIES + q]);
        }
        let all = of_workgroup(thread, sum);
        if thread == 0u {
            totals[q] = all;
        }
    }
    workgroupBarrier();
    finish(owner, thread);
}
