// Loads of `SIDE`: one vector of the buffer.

fn load_SIDE(at: At) -> RAW {
    return SIDE_buffer[at.vector + table.header.SIDE];
}
