//! The planner as pure arithmetic.

use super::*;
use cpu_harness::Random;
use std::collections::HashMap;

const LIMITS: Limits =
    Limits { chunk_elements: 1 << 25, workgroups: 65_535, uniform_bytes: 65_536, storage_bindings: 8 };

fn limits() -> Vec<Limits> {
    let mut all = Vec::new();
    for chunk_elements in [256, 4_096, (1 << 25) - 64, (1 << 29) - 128] {
        for workgroups in [7, 65_535] {
            for uniform_bytes in [1_024, 16_384, 65_536] {
                all.push(Limits { chunk_elements, workgroups, uniform_bytes, storage_bindings: 8 });
            }
        }
    }
    all
}

/// `count` tensors of `len` elements side by side, in two groups by turns.
fn side_by_side(count: u64, len: u64) -> Vec<Span> {
    let span = |i| Span { tensor: i as usize, group: (i % 2) as u32, start: i * len, end: (i + 1) * len };
    (0..count).map(span).collect()
}

/// Properties of any chunks. They may be huge, so nothing here walks elements.
fn check_chunks(spans: &[Span], chunks: &[Chunk], limit: u64, block: u32) {
    let starts: HashMap<usize, u64> = spans.iter().map(|span| (span.tensor, span.start)).collect();
    let mut spans = spans.iter().copied();
    let mut open: Option<Span> = spans.next();
    let mut previous_end = 0;
    for chunk in chunks {
        assert!(chunk.start.is_multiple_of(CHUNK_ALIGNMENT));
        assert!(chunk.end - chunk.start <= limit, "{} elements bound", chunk.end - chunk.start);
        // Two chunks never share a quad, so they never write the same vec4.
        assert!(chunk.pieces[0].start / QUAD * QUAD >= previous_end);
        previous_end = chunk.end;
        let mut next_state = 0u64;
        let mut last_quad = None;
        for piece in &chunk.pieces {
            let mut span = open.expect("a piece of no tensor");
            assert_eq!((piece.tensor, piece.group, piece.start), (span.tensor, span.group, span.start));
            assert!(piece.end > piece.start && piece.end <= span.end);
            span.start = piece.end;
            open = if span.start == span.end { spans.next() } else { Some(span) };
            // State quads are the touched quads, in order, none twice, and in whole blocks.
            let first = piece.start / QUAD;
            let expected = if last_quad == Some(first) { next_state - 1 } else { next_state };
            assert_eq!(u64::from(piece.state), expected);
            assert!(
                piece.state.is_multiple_of(block)
                    && (first - starts[&piece.tensor] / QUAD).is_multiple_of(block.into())
            );
            last_quad = Some((piece.end - 1) / QUAD);
            next_state = expected + (piece.end.div_ceil(QUAD) - first).next_multiple_of(block.into());
        }
        assert_eq!(u64::from(chunk.state_quads), next_state);
    }
    assert!(open.is_none(), "{open:?} is in no chunk");
}

/// The workgroups reach every tile, and the tiles are the pieces' quads in order.
fn check_dispatch(chunk: &Chunk, plan: &Dispatch, tiling: Tiling, limits: &Limits) {
    let [x, y] = plan.workgroups.map(u64::from);
    assert!(x <= limits.workgroups.into());
    let single = plan.tiles.len() == 1;
    let needed = if single {
        u64::from(plan.tiles[0].quads).div_ceil(WORKGROUP_SIZE.into())
    } else {
        (plan.tiles.len() as u64) << plan.shift
    };
    assert!(x * y >= needed, "{x}×{y} workgroups for {needed}");
    assert!(x * y < needed + x, "a whole row too many");
    if plan.space == Space::Uniform {
        assert!(
            plan.tiles.len() <= uniform_tiles(limits.uniform_bytes, plan.whole, tiling.by_tensor) as usize
        );
    }
    assert!(!(plan.whole && tiling.by_element));
    let mut covered = 0;
    let mut previous: Option<u64> = None;
    for tile in &plan.tiles {
        assert!(tile.quads > 0 && (single || tile.quads <= WORKGROUP_SIZE << plan.shift));
        assert!(previous.is_none_or(|p| u64::from(tile.quad) >= p), "quads in order, none twice");
        // The threads of a block lie side by side.
        assert!(tile.state.is_multiple_of(tiling.block));
        previous = Some(u64::from(tile.quad) + u64::from(tile.quads));
        // The first and last quads, and one between: their lanes are the pieces', and so is their state.
        let ends = [0, tile.quads / 2, tile.quads - 1];
        for i in ends {
            let (quad, state) = (u64::from(tile.quad + i), u64::from(tile.state + i));
            for (lane, &group) in tile.lanes(i).iter().enumerate() {
                let element = chunk.start + quad * QUAD + lane as u64;
                let at = chunk.pieces.partition_point(|p| p.end <= element);
                let owner = chunk.pieces.get(at).filter(|p| p.start <= element);
                assert_eq!(u32::from(group), owner.map_or(NONE.into(), |p| p.group), "element {element}");
                if let Some(p) = owner {
                    assert!(!tiling.by_tensor || p.tensor == tile.tensor, "a tile of two tensors");
                    assert_eq!(state, u64::from(p.state) + element / QUAD - p.start / QUAD);
                }
            }
        }
        let owned = |lanes: [u16; 4]| lanes.iter().filter(|&&lane| lane != NONE).count() as u64;
        covered += owned(tile.lanes(0));
        if tile.quads > 1 {
            covered += owned(tile.last) + QUAD * u64::from(tile.quads - 2);
        }
        assert!(u64::from(tile.state) + u64::from(tile.quads) <= chunk.state_quads.into());
        if plan.whole {
            assert!((0..tile.quads.min(2)).all(|i| tile.lanes(i) == [tile.group as u16; 4]));
            assert_eq!(tile.last, [tile.group as u16; 4]);
        }
    }
    let elements: u64 = chunk.pieces.iter().map(|p| p.end - p.start).sum();
    assert_eq!(covered, elements);
    let quads = (chunk.end - chunk.start).div_ceil(QUAD);
    assert!(previous.is_none_or(|end| end <= quads), "a tile beyond the chunk");
}

fn check_all(spans: &[Span]) {
    for limits in limits() {
        // Small chunks of huge layouts are many; the arithmetic is the same.
        if spans.last().is_some_and(|s| s.end / limits.chunk_elements > 100_000) {
            continue;
        }
        check_spans(spans, 1, false, &limits);
        let families = families(spans);
        assert_eq!(families.iter().map(Vec::len).sum::<usize>(), spans.len());
        for family in families {
            let apart = |pair: &[Span]| (pair[0].end - 1) / QUAD < pair[1].start / QUAD;
            assert!(family.windows(2).all(apart), "two tensors share a quad");
            check_spans(&family, BLOCK_QUADS, false, &limits);
            check_spans(&family, 1, true, &limits);
        }
    }
}

fn check_spans(spans: &[Span], block: u32, by_tensor: bool, limits: &Limits) {
    let chunks = chunks(spans, limits.chunk_elements, block);
    check_chunks(spans, &chunks, limits.chunk_elements, block);
    for chunk in chunks.iter().take(100).chain(chunks.last()) {
        for by_element in [false, true] {
            let tiling = Tiling { by_element, block, by_tensor };
            let plan = dispatch(&chunk.pieces, chunk.start, tiling, limits);
            // A device with 7 workgroups a dimension cannot reach everything; real ones have 65 535².
            if u64::from(plan.workgroups[1]) <= limits.workgroups.into() {
                check_dispatch(chunk, &plan, tiling, limits);
            } else {
                assert_eq!(limits.workgroups, 7);
            }
        }
    }
}

#[test]
fn one_tensor_of_any_size_up_to_2_pow_33() {
    let mut sizes = vec![1, 2, 3, 4, 5, 255, 256, 257];
    for power in [10, 16, 24, 26, 29, 31, 32, 33] {
        sizes.extend([(1u64 << power) - 1, 1 << power]);
    }
    sizes.extend([65_535 * 256, 65_535 * 256 + 1, 65_535 * 1_024 + 1]);
    for size in sizes {
        for start in [0, 1, 63, 64, 4_097] {
            check_all(&[Span { tensor: 0, group: 0, start, end: start + size }]);
        }
    }
}

#[test]
fn random_tensors_with_and_without_gaps() {
    let mut random = Random::new(7);
    for round in 0..100 {
        let (count, longest) = (1 + random.below(300), [5, 100, 5_000, 1 << 22][round % 4]);
        let mut at = random.below(100);
        let mut spans = Vec::new();
        for _ in 0..count {
            at += if random.below(3) == 0 { random.below(70) } else { 0 };
            let end = at + 1 + random.below(longest);
            spans.push(Span { tensor: spans.len(), group: random.below(4) as u32, start: at, end });
            at = end;
        }
        check_all(&spans);
    }
}

#[test]
fn two_pow_33_elements_in_many_tensors() {
    check_all(&side_by_side(8_192, 1 << 20));
}

/// Tables stay small whatever the model: with the scalars, under the promised 1 MiB.
#[test]
fn tables_stay_small() {
    for (tensors, len) in [(1, 1u64 << 25), (512, 4_096), (1_000, 33), (148, 65_536), (10_000, 3_001)] {
        for chunk in chunks(&side_by_side(tensors, len), LIMITS.chunk_elements, 1) {
            let plan = dispatch(&chunk.pieces, chunk.start, Tiling::plain(false), &LIMITS);
            let bytes = plan.tiles.len() * if plan.whole { 16 } else { 32 };
            assert!(bytes <= 960 << 10, "{tensors} × {len}: {bytes} bytes");
        }
    }
}

/// Idle workgroups cost time: for the shapes that people train, few are.
#[test]
fn few_workgroups_are_idle() {
    for (tensors, len) in [
        (1, 1u64 << 24),
        (512, 4_096),
        (512, 4_097),
        (148, 65_536),
        (64, 1 << 18),
        (2, 8_388_609),
        (2_000, 1_049),
    ] {
        let chunks = chunks(&side_by_side(tensors, len), LIMITS.chunk_elements, 1);
        assert_eq!(chunks.len(), 1);
        let plan = dispatch(&chunks[0].pieces, 0, Tiling::plain(false), &LIMITS);
        let needed = (tensors * len).div_ceil(QUAD * u64::from(WORKGROUP_SIZE));
        let taken = u64::from(plan.workgroups[0]) * u64::from(plan.workgroups[1]);
        // Each tensor's last workgroup may be idle in part.
        assert!(
            taken <= needed * 105 / 100 + tensors,
            "{tensors} × {len}: {taken} workgroups, {needed} needed"
        );
    }
}

/// A reduction visits every element once: at seams that are shared in one tile, at others in a tile of its
/// own group alone.
#[test]
fn reductions_visit_every_element_once() {
    let mut random = Random::new(17);
    for round in 0..40 {
        let mut spans = Vec::new();
        let mut at = 0;
        for _ in 0..1 + random.below(60) {
            let start = at + random.below(6) * random.below(2);
            at = start + 1 + random.below(if round % 4 == 0 { 70_000 } else { 30 });
            spans.push(Span { tensor: spans.len(), group: random.below(3) as u32, start, end: at });
        }
        let limits = Limits { workgroups: 7, ..LIMITS };
        let whole = chunks(&spans, 1 << 25, 1);
        for (seams, by_element) in [(Seams::Shared, false), (Seams::Apart, false), (Seams::Apart, true)] {
            let plan = reduction(&whole[0].pieces, whole[0].start, Tiling::plain(by_element), seams, &limits);
            let [x, y] = plan.workgroups;
            assert!(u64::from(x) * u64::from(y) >= plan.tiles.len() as u64 && x <= 7);
            let mut visits = vec![0u8; at.next_multiple_of(QUAD) as usize];
            let mut quads = std::collections::HashSet::new();
            for tile in &plan.tiles {
                for i in 0..tile.quads {
                    let quad = u64::from(tile.quad + i);
                    assert!(seams == Seams::Apart || quads.insert(quad), "quad {quad} is in two tiles");
                    for (lane, group) in tile.lanes(i).into_iter().enumerate().filter(|(_, g)| *g != NONE) {
                        assert!(seams == Seams::Shared || u32::from(group) == tile.group);
                        let element = quad * QUAD + lane as u64;
                        let span = spans.iter().find(|s| (s.start..s.end).contains(&element)).unwrap();
                        assert_eq!(u32::from(group), span.group, "element {element}");
                        visits[element as usize] += 1;
                    }
                }
            }
            let owned = |element: u64| spans.iter().any(|s| (s.start..s.end).contains(&element));
            for (element, &visits) in (0..).zip(&visits) {
                assert_eq!(visits, u8::from(owned(element)), "element {element}, {seams:?}");
            }
        }
    }
}
