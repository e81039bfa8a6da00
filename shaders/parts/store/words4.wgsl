// Stores of `SIDE`, word by word, without the lanes of padding.

fn store_SIDE(at: At, next: RAW) {
    let i = words_SIDE(at);
    if at.lanes.x != NONE { SIDE_buffer[i.x] = next.x; }
    if at.lanes.y != NONE { SIDE_buffer[i.y] = next.y; }
    if at.lanes.z != NONE { SIDE_buffer[i.z] = next.z; }
    if at.lanes.w != NONE { SIDE_buffer[i.w] = next.w; }
}
