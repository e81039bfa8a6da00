// Loads of `SIDE`, word by word: the buffer holds the vector in two words, which do not start at a multiple
// of 8 bytes. Lanes of padding may lie outside the buffer, before it (wrapped) or after it: they read its
// last word.

fn words_SIDE(at: At) -> vec2<u32> {
    let first = vec2<u32>(2u * at.vector + table.header.SIDE);
    return min(first + vec2<u32>(0u, 1u), vec2<u32>(table.header.SIDE_last));
}

fn load_SIDE(at: At) -> RAW {
    let i = words_SIDE(at);
    return vec2<u32>(SIDE_buffer[i.x], SIDE_buffer[i.y]);
}
