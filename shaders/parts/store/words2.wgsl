// Stores of `SIDE`, word by word, without words of padding. A lane of padding holds its old bits.

fn store_SIDE(at: At, next: RAW) {
    let i = words_SIDE(at);
    if at.lanes.x != NONE || at.lanes.y != NONE { SIDE_buffer[i.x] = next.x; }
    if at.lanes.z != NONE || at.lanes.w != NONE { SIDE_buffer[i.y] = next.y; }
}
