// Stores of `SIDE`: one vector of the buffer. Lanes of padding hold their old bits.

fn store_SIDE(at: At, next: RAW) {
    SIDE_buffer[at.vector + table.header.SIDE] = next;
}
