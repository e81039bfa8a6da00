// Stores state in blocks. The threads of a block lie side by side and share the largest of their values: no
// atomics, and two barriers for all slots together.

const BLOCKS = WORKGROUP_SIZE / BLOCK_VECTORS;
// Rounds in which each thread finds the scale of one block. A compiler unrolls a loop of a known length.
const SCALE_ROUNDS = (BLOCK_SLOTS * BLOCKS + WORKGROUP_SIZE - 1u) / WORKGROUP_SIZE;

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
    for (var round = 0u; round < SCALE_ROUNDS; round++) {
        let i = round * WORKGROUP_SIZE + thread;
        if i < BLOCK_SLOTS * BLOCKS {
            var most = 0u;
            var any = 0u;
            for (var k = 0u; k < BLOCK_VECTORS; k++) {
                let peak = peaks[BLOCK_VECTORS * i + k];
                most = max(most, peak);
                any |= peak;
            }
            scales[i] = scale_q8(most | (any & 1u));
        }
    }
    workgroupBarrier();
    if own {
        store_slots(at, thread);
    }
}
