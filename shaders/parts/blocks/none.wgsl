// State without blocks is stored by the rule's writes.

fn store_blocks(at: At, own: bool, thread: u32) {}
