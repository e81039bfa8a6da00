// Stores state in blocks. The threads of a block lie side by side and share the largest of their values: no
// atomics, and two barriers for all slots together.

const BLOCKS = WORKGROUP_SIZE / BLOCK_VECTORS;

// Of each slot one after the other: the largest value of each thread, and the scale of each block.
var<workgroup> peaks: array<u32, BLOCK_SLOTS * WORKGROUP_SIZE>;
var<workgroup> scales: array<u32, BLOCK_SLOTS * BLOCKS>;

// A block's scale lies behind all codes of its slot.
fn scale_at(at: At) -> u32 {
    return table.header.scales + at.state / BLOCK_VECTORS;
}

fn store_blocks(at: At, own: bool, thread: u32) {
    share_peaks(at, own, thread);
    workgroupBarrier();
    // One thread looks at a whole block, and all threads read its result: on software Vulkan a load from a
    // computed address is a load for each thread, which costs more than a barrier.
    for (var i = thread; i < BLOCK_SLOTS * BLOCKS; i += WORKGROUP_SIZE) {
        var all = peaks[BLOCK_VECTORS * i];
        for (var k = 1u; k < BLOCK_VECTORS; k++) {
            all = joined_peaks(all, peaks[BLOCK_VECTORS * i + k]);
        }
        scales[i] = scale_q8(all);
    }
    workgroupBarrier();
    if own {
        store_slots(at, thread);
    }
}
