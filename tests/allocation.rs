//! Once warm, recording a step allocates nothing in this crate: every allocation on the recording thread is
//! traced to the frame that asked for it.

use harness::GpuRun;
use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use wgpu_optim::{AdamW, Clip, Ema, Group, Lamb, Layout, LossScale, Options, Schedule, cpu, schedule};

struct Traced;

thread_local! {
    static TRACING: Cell<bool> = const { Cell::new(false) };
    static TRACES: RefCell<Vec<backtrace::Backtrace>> = const { RefCell::new(Vec::new()) };
}

fn trace() {
    // Taking a trace allocates: no trace of that.
    if TRACING.replace(false) {
        TRACES.with_borrow_mut(|traces| traces.push(backtrace::Backtrace::new_unresolved()));
        TRACING.set(true);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Traced {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        trace();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, block) };
    }

    unsafe fn realloc(&self, at: *mut u8, block: Block, size: usize) -> *mut u8 {
        trace();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, block, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Traced = Traced;

/// The source file that allocated: the innermost file outside the standard library, the tracer and this test.
/// Files are compared because symbols of inlined functions do not name their crate.
fn culprit(trace: &mut backtrace::Backtrace) -> PathBuf {
    trace.resolve();
    let files = trace.frames().iter().flat_map(|f| f.symbols()).filter_map(|s| s.filename());
    let passed_over = ["/rustc/", "/rust/deps/", "/library/", "/backtrace-", file!()];
    let mut files = files.filter(|f| !passed_over.iter().any(|p| f.to_string_lossy().contains(p)));
    files.next().map(Path::to_path_buf).unwrap_or_default()
}

/// Whether a file is one of this crate's sources.
fn is_ours(file: &PathBuf) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(file).starts_with(root.join("src"))
}

/// The files that allocated while `work` ran.
fn culprits(work: impl FnOnce()) -> Vec<PathBuf> {
    TRACING.set(true);
    work();
    TRACING.set(false);
    let mut traces = TRACES.take();
    traces.iter_mut().map(culprit).collect()
}

#[test]
fn a_warm_step_allocates_nothing_of_ours() {
    let all = Options {
        clip: Some(Clip::GlobalNorm(1.0)),
        loss_scale: Some(LossScale::default()),
        zero_gradients: true,
        ema: Some(Ema { decay: 0.9, debias: true }),
        ..Options::default()
    };
    // One after the other: a trace covers a whole thread.
    for options in [Options::default(), all] {
        check(options);
    }
    check_cpu(all);
    let seen = culprits(|| drop(std::hint::black_box(own_allocation())));
    assert!(seen.iter().any(is_ours), "{seen:?}");
}

fn check(options: Options) {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = AdamW::default();
    let factor = schedule::multi_step(1.0, 0.5, [15, 25]).times(schedule::one_cycle(1.0, 100)).then(20, 0.1);
    let rest = Group::new("rest", AdamW { weight_decay: 0.0, ..rule }).lr_factor(factor);
    let mut groups = [Group::new("decay", rule), rest, Group::new("other", Lamb::default())];
    for i in 0..512u64 {
        let group = &mut groups[(i % 3) as usize];
        *group = group.clone().tensor_at(format!("t{i}"), [4_096], i * 4_096);
    }
    let layout = Layout::new(groups).unwrap();
    let zeros = vec![0.0; layout.len() as usize];
    let mut run = GpuRun::new(&gpu, layout, options, &zeros);
    let lr = Schedule::from(1e-3).warmup(15).times(|t: u64| 1.0 / (1.0 + t as f64));
    let mut step = |traced: bool| {
        let mut encoder = gpu.encoder();
        let mut record = || {
            let step = lr.at(run.optimizer.steps()).unwrap();
            run.record(&mut encoder, step).unwrap();
        };
        let found = if traced {
            culprits(record)
        } else {
            record();
            Vec::new()
        };
        gpu.run(encoder);
        found
    };
    for _ in 0..10 {
        step(false);
    }
    let mut all = 0;
    for _ in 0..20 {
        let found = step(true);
        all += found.len();
        let ours: Vec<_> = found.iter().filter(|file| is_ours(file)).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
    // wgpu itself allocates while it records; the trace of it shows that the tracing works.
    assert!(all > 0, "nothing was traced");
}

/// The CPU engine over flat slices.
fn check_cpu(options: Options) {
    let group = Group::new("g", AdamW::default()).tensor("large", [200_000]).tensor("small", [3]);
    let other = Group::new("other", Lamb::default()).tensor("another", [50_000]);
    let layout = Layout::new([group, other]).unwrap();
    let len = layout.len() as usize;
    let (mut params, mut grads) = (vec![0.5; len], vec![0.25; len]);
    let mut optimizer = cpu::Optimizer::with_options(layout, options).unwrap();
    let mut step = || {
        optimizer.step(cpu::Tensors::flat(&mut params, &mut grads), 1e-3).unwrap();
    };
    step();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    // In a pool of one all of it runs on one thread, which is the one that is traced.
    for _ in 0..5 {
        let found = pool.install(|| culprits(&mut step));
        assert!(!found.iter().any(is_ours), "{found:?}");
    }
}

/// An allocation that is this crate's for certain.
fn own_allocation() -> Result<Layout, wgpu_optim::LayoutError> {
    Layout::new([Group::new("g", AdamW::default()).tensor("t", [1])])
}
