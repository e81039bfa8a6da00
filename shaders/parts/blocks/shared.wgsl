// Stores state in blocks. The adjacent threads of a block share the largest of their values. There are no
// atomics, and two barriers for all slots together.

const BLOCKS = WORKGROUP_SIZE / BLOCK_VECTORS;
// Rounds in which each thread finds the scale of one block. A compiler unrolls a loop of a known length.
const SCALE_ROUNDS = (BLOCK_SLOTS * BLOCKS + WORKGROUP_SIZE - 1u) / WORKGROUP_SIZE;

// Per slot, one after the other: the largest value of each thread, and the scale of each block.
var<workgroup> peaks: array<u32, BLOCK_SLOTS * WORKGROUP_SIZE>;
var<workgroup> scales: array<u32, BLOCK_SLOTS * BLOCKS>;

// The scales of a slot lie after all of its codes.
fn scale_at(at: At) -> u32 {
    return table.header.scales + at.state / BLOCK_VECTORS;
}

fn store_blocks(at: At, own: bool, thread: u32) {
    share_peaks(at, own, thread);
    workgroupBarrier();
    // One thread reads a whole block, and all threads read its result. On software Vulkan a load from a
    // computed address is one load per thread, which takes longer than a barrier.
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
