// Loads of `SIDE`, word by word: the buffer holds the vector in four words, which do not start at a multiple
// of 16 bytes. Lanes of padding may lie outside the buffer, before it (wrapped) or after it: they read its
// last word.

fn words_SIDE(at: At) -> vec4<u32> {
    let first = vec4<u32>(4u * at.vector + table.header.SIDE);
    return min(first + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(table.header.SIDE_last));
}

fn load_SIDE(at: At) -> RAW {
    let i = words_SIDE(at);
    return vec4<u32>(SIDE_buffer[i.x], SIDE_buffer[i.y], SIDE_buffer[i.z], SIDE_buffer[i.w]);
}
