//! The tables of segments that dispatches read, in one buffer.

use crate::gpu::device::ALIGNMENT;
use crate::gpu::kernel::TableLayout;
use crate::gpu::plan::{
    AlignedSegment, Dispatch, HEADER_BYTES, Header, Segment, SharedSegment, Space, TENSOR_BYTES,
    uniform_segments,
};
use crate::layout::{Tensor, VECTOR};
use crate::narrow::to_usize;
use crate::random::tensor_key;

/// The segments of one dispatch.
pub(super) struct Table {
    pub(super) table_layout: TableLayout,
    pub(super) header: Header,
    /// The element that vectors are counted from.
    pub(super) base: u64,
    pub(super) dispatch: Dispatch,
}

/// All tables in one buffer.
#[derive(Default)]
pub(super) struct Tables {
    bytes: Vec<u8>,
    end: u64,
}

impl Tables {
    /// Writes a table. Returns the offset and the size to bind.
    pub(super) fn write(&mut self, table: &Table, tensors: &[&Tensor]) -> (u64, u64) {
        let Table { table_layout, header, base, dispatch } = table;
        let bytes = &mut self.bytes;
        bytes.resize(bytes.len().next_multiple_of(to_usize(ALIGNMENT)), 0);
        let offset = bytes.len();
        bytes.extend_from_slice(bytemuck::bytes_of(header));
        bytes.resize(offset + HEADER_BYTES, 0);
        for &Segment { vector, state, vectors, group, first, last, tensor } in &dispatch.segments {
            if table_layout.aligned {
                bytes.extend_from_slice(bytemuck::bytes_of(&AlignedSegment {
                    vector,
                    state,
                    vectors,
                    group,
                }));
            } else {
                let segment = SharedSegment { vector, state, vectors, group, first, last };
                bytes.extend_from_slice(bytemuck::bytes_of(&segment));
            }
            if table_layout.by_tensor {
                let tensor = tensors[tensor];
                let vectors = base / VECTOR + u64::from(vector) - tensor.offset / VECTOR;
                let place = vectors * VECTOR + tensor.offset % VECTOR;
                #[allow(clippy::cast_possible_truncation, reason = "the shader counts elements modulo 2³²")]
                let element = [tensor_key(&tensor.name), place as u32];
                bytes.extend_from_slice(bytemuck::bytes_of(&element));
                bytes.resize(bytes.len() + TENSOR_BYTES - size_of_val(&element), 0);
            }
        }
        let size = match table_layout.space {
            // A uniform table is declared at its full size.
            Space::Uniform => table_layout.table_bytes(uniform_segments(
                table_layout.uniform_bytes,
                table_layout.aligned,
                table_layout.by_tensor,
            ) as usize),
            Space::Storage => (bytes.len() - offset) as u64,
        };
        self.end = self.end.max(offset as u64 + size);
        (offset as u64, size)
    }

    /// The bytes of all tables, with room after the last tables for their full size.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(to_usize(self.end), 0);
        self.bytes
    }
}
