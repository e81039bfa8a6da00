// Adds up the partial sums of each target, with one workgroup per target.

@compute @workgroup_size(WORKGROUP_SIZE)
fn fold(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let all = of_workgroup(thread, sums_of(workgroup.x, thread, WORKGROUP_SIZE));
    if thread == 0u {
        totals = all;
    }
    workgroupBarrier();
    finish(workgroup.x, thread, WORKGROUP_SIZE, totals);
}

// The target's sums of each quantity.
var<workgroup> totals: Partials;
