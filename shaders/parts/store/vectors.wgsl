// Stores of `SIDE`: one vector of the buffer. Lanes of padding hold the bits that they had.

fn store_SIDE(at: At, next: RAW) {
    SIDE_buffer[at.vector + table.header.SIDE] = next;
}
