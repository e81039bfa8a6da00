//! The planner as pure arithmetic.

use super::*;
use cpu_harness::Random;
use std::collections::HashMap;

const LIMITS: Limits = Limits {
    chunk_elements: 1 << 25,
    workgroups: 65_535,
    uniform_bytes: 65_536,
    scalars_space: Space::Uniform,
    binding_bytes: 1 << 27,
};

fn limits() -> Vec<Limits> {
    let mut all = Vec::new();
    for chunk_elements in [256, 4_096, (1 << 25) - 64, (1 << 29) - 128] {
        for workgroups in [7, 65_535] {
            for uniform_bytes in [1_024, 16_384, 65_536] {
                all.push(Limits { chunk_elements, workgroups, uniform_bytes, ..LIMITS });
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

/// Checks properties of any chunks. Chunks may be huge, so the checks do not visit elements.
fn check_chunks(spans: &[Span], chunks: &[Chunk], limit: u64, block: u32) {
    let starts: HashMap<usize, u64> = spans.iter().map(|span| (span.tensor, span.start)).collect();
    let mut spans = spans.iter().copied();
    let mut open: Option<Span> = spans.next();
    let mut previous_end = 0;
    for chunk in chunks {
        assert!(chunk.start.is_multiple_of(CHUNK_ALIGNMENT));
        assert!(chunk.end - chunk.start <= limit, "{} elements bound", chunk.end - chunk.start);
        // Two chunks never share a vector, so they never write the same vec4.
        assert!(chunk.tensor_ranges[0].start / VECTOR * VECTOR >= previous_end);
        previous_end = chunk.end;
        let mut next_state = 0u64;
        let mut last_vector = None;
        for tensor_range in &chunk.tensor_ranges {
            let mut span = open.expect("a tensor_range of no tensor");
            assert_eq!(
                (tensor_range.tensor, tensor_range.group, tensor_range.start),
                (span.tensor, span.group, span.start)
            );
            assert!(tensor_range.end > tensor_range.start && tensor_range.end <= span.end);
            span.start = tensor_range.end;
            open = if span.start == span.end { spans.next() } else { Some(span) };
            // State vectors are the touched vectors, in order, none twice, and in whole blocks.
            let first = tensor_range.start / VECTOR;
            let expected = if last_vector == Some(first) { next_state - 1 } else { next_state };
            assert_eq!(u64::from(tensor_range.state), expected);
            assert!(
                tensor_range.state.is_multiple_of(block)
                    && (first - starts[&tensor_range.tensor] / VECTOR).is_multiple_of(block.into())
            );
            last_vector = Some((tensor_range.end - 1) / VECTOR);
            next_state =
                expected + (tensor_range.end.div_ceil(VECTOR) - first).next_multiple_of(block.into());
        }
        assert_eq!(u64::from(chunk.state_vectors), next_state);
    }
    assert!(open.is_none(), "{open:?} is in no chunk");
}

/// Checks that the workgroups reach every segment, and that the segments have the tensor ranges' vectors in
/// order.
fn check_dispatch(chunk: &Chunk, plan: &Dispatch, constraints: Constraints, limits: &Limits) {
    let [x, y] = plan.workgroups.map(u64::from);
    assert!(x <= limits.workgroups.into());
    let single = plan.segments.len() == 1;
    let needed = if single {
        u64::from(plan.segments[0].vectors).div_ceil(WORKGROUP_SIZE.into())
    } else {
        (plan.segments.len() as u64) << plan.shift
    };
    assert!(x * y >= needed, "{x}×{y} workgroups for {needed}");
    assert!(x * y < needed + x, "a whole row too many");
    if plan.space == Space::Uniform {
        assert!(
            plan.segments.len()
                <= uniform_segments(limits.uniform_bytes, plan.aligned, constraints.by_tensor) as usize
        );
    }
    assert!(!(plan.aligned && constraints.by_element));
    let mut covered = 0;
    let mut previous: Option<u64> = None;
    for segment in &plan.segments {
        assert!(segment.vectors > 0 && (single || segment.vectors <= WORKGROUP_SIZE << plan.shift));
        assert!(previous.is_none_or(|p| u64::from(segment.vector) >= p), "vectors in order, none twice");
        // The threads of a block lie side by side.
        assert!(segment.state.is_multiple_of(constraints.block));
        previous = Some(u64::from(segment.vector) + u64::from(segment.vectors));
        // The first and last vectors and one in between have the lanes and the state of the tensor ranges.
        let ends = [0, segment.vectors / 2, segment.vectors - 1];
        for i in ends {
            let (vector, state) = (u64::from(segment.vector + i), u64::from(segment.state + i));
            for (lane, &group) in segment.lanes(i).iter().enumerate() {
                let element = chunk.start + vector * VECTOR + lane as u64;
                let at = chunk.tensor_ranges.partition_point(|p| p.end <= element);
                let tensor_range = chunk.tensor_ranges.get(at).filter(|p| p.start <= element);
                assert_eq!(
                    u32::from(group),
                    tensor_range.map_or(NONE.into(), |p| p.group),
                    "element {element}"
                );
                if let Some(p) = tensor_range {
                    assert!(!constraints.by_tensor || p.tensor == segment.tensor, "a segment of two tensors");
                    assert_eq!(state, u64::from(p.state) + element / VECTOR - p.start / VECTOR);
                }
            }
        }
        let owned = |lanes: [u16; 4]| lanes.iter().filter(|&&lane| lane != NONE).count() as u64;
        covered += owned(segment.lanes(0));
        if segment.vectors > 1 {
            covered += owned(segment.last) + VECTOR * u64::from(segment.vectors - 2);
        }
        assert!(u64::from(segment.state) + u64::from(segment.vectors) <= chunk.state_vectors.into());
        if plan.aligned {
            assert!((0..segment.vectors.min(2)).all(|i| segment.lanes(i) == [segment.group as u16; 4]));
            assert_eq!(segment.last, [segment.group as u16; 4]);
        }
    }
    let elements: u64 = chunk.tensor_ranges.iter().map(|p| p.end - p.start).sum();
    assert_eq!(covered, elements);
    let vectors = (chunk.end - chunk.start).div_ceil(VECTOR);
    assert!(previous.is_none_or(|end| end <= vectors), "a segment beyond the chunk");
}

fn check_all(spans: &[Span]) {
    for limits in limits() {
        // Small chunks of huge layouts are many; the arithmetic is the same.
        if spans.last().is_some_and(|s| s.end / limits.chunk_elements > 100_000) {
            continue;
        }
        check_spans(spans, 1, false, &limits);
        let disjoint_sets = disjoint_sets(spans);
        assert_eq!(disjoint_sets.iter().map(Vec::len).sum::<usize>(), spans.len());
        for disjoint_set in disjoint_sets {
            let apart = |pair: &[Span]| (pair[0].end - 1) / VECTOR < pair[1].start / VECTOR;
            assert!(disjoint_set.windows(2).all(apart), "two tensors share a vector");
            check_spans(&disjoint_set, BLOCK_VECTORS, false, &limits);
            check_spans(&disjoint_set, 1, true, &limits);
        }
    }
}

fn check_spans(spans: &[Span], block: u32, by_tensor: bool, limits: &Limits) {
    let chunks = chunks(spans, limits.chunk_elements, block);
    check_chunks(spans, &chunks, limits.chunk_elements, block);
    for chunk in chunks.iter().take(100).chain(chunks.last()) {
        for by_element in [false, true] {
            let constraints = Constraints { by_element, block, by_tensor };
            let plan = dispatch(&chunk.tensor_ranges, chunk.start, constraints, limits);
            // A device with 7 workgroups a dimension cannot reach everything; real ones have 65 535².
            if u64::from(plan.workgroups[1]) <= limits.workgroups.into() {
                check_dispatch(chunk, &plan, constraints, limits);
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

/// Tables stay small for every model: with the scalars, under the promised 1 MiB.
#[test]
fn tables_stay_small() {
    for (tensors, len) in [(1, 1u64 << 25), (512, 4_096), (1_000, 33), (148, 65_536), (10_000, 3_001)] {
        for chunk in chunks(&side_by_side(tensors, len), LIMITS.chunk_elements, 1) {
            let plan = dispatch(&chunk.tensor_ranges, chunk.start, Constraints::plain(false), &LIMITS);
            let bytes = plan.segments.len() * if plan.aligned { 16 } else { 32 };
            assert!(bytes <= 960 << 10, "{tensors} × {len}: {bytes} bytes");
        }
    }
}

/// Idle workgroups cost time. Few are idle for common shapes of models.
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
        let plan = dispatch(&chunks[0].tensor_ranges, 0, Constraints::plain(false), &LIMITS);
        let needed = (tensors * len).div_ceil(VECTOR * u64::from(WORKGROUP_SIZE));
        let taken = u64::from(plan.workgroups[0]) * u64::from(plan.workgroups[1]);
        // Each tensor's last workgroup may be idle in part.
        assert!(
            taken <= needed * 105 / 100 + tensors,
            "{tensors} × {len}: {taken} workgroups, {needed} needed"
        );
    }
}

/// A reduction visits every element once: in one segment with [`Seams::Shared`], in the segment of its own
/// group with [`Seams::Apart`].
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
            let plan = reduction(
                &whole[0].tensor_ranges,
                whole[0].start,
                Constraints::plain(by_element),
                seams,
                &limits,
            );
            let [x, y] = plan.workgroups;
            assert!(u64::from(x) * u64::from(y) >= plan.segments.len() as u64 && x <= 7);
            let mut visits = vec![0u8; at.next_multiple_of(VECTOR) as usize];
            let mut vectors = std::collections::HashSet::new();
            for segment in &plan.segments {
                for i in 0..segment.vectors {
                    let vector = u64::from(segment.vector + i);
                    assert!(
                        seams == Seams::Apart || vectors.insert(vector),
                        "vector {vector} is in two segments"
                    );
                    for (lane, group) in segment.lanes(i).into_iter().enumerate().filter(|(_, g)| *g != NONE)
                    {
                        assert!(seams == Seams::Shared || u32::from(group) == segment.group);
                        let element = vector * VECTOR + lane as u64;
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

/// The drawing in ARCHITECTURE.md: six elements of one group, then five of another.
#[test]
fn the_drawn_example_holds() {
    let spans =
        [Span { tensor: 0, group: 0, start: 0, end: 6 }, Span { tensor: 1, group: 1, start: 6, end: 11 }];
    let chunks = chunks(&spans, LIMITS.chunk_elements, 1);
    let [chunk] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!((chunk.start, chunk.end, chunk.state_vectors), (0, 11, 3));
    let rows = |dispatch: Dispatch| {
        let row = |s: &Segment| ((s.vector, s.state, s.vectors, s.group), s.first, s.last);
        dispatch.segments.iter().map(row).collect::<Vec<_>>()
    };
    let plain = Constraints::plain(false);
    let step = dispatch(&chunk.tensor_ranges, chunk.start, plain, &LIMITS);
    assert!(!step.aligned);
    let b = [1, 1, 1, NONE];
    assert_eq!(rows(step), [((0, 0, 2, 0), [0; 4], [0, 0, 1, 1]), ((2, 2, 1, 1), b, b)]);
    let norms = reduction(&chunk.tensor_ranges, chunk.start, plain, Seams::Apart, &LIMITS);
    let (a_ends, b_starts) = ([0, 0, NONE, NONE], [NONE, NONE, 1, 1]);
    assert_eq!(rows(norms), [((0, 0, 2, 0), [0; 4], a_ends), ((1, 1, 2, 1), b_starts, b)]);
}
