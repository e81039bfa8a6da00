//! Runs that continue in another process.

use super::*;

/// The gradient scale of every other case.
const DIVISOR: f64 = 8.0;

/// The variable that tells the first process its directory, and that it is the first one.
const BEGINS: &str = "WGPU_OPTIM_TEST_BEGINS";

/// One of two processes that go through the same cases: one begins each run, the other continues from the
/// checkpoint.
struct Process {
    directory: PathBuf,
    cases: usize,
    /// The first process, for the second.
    begins: Option<(Child, Lines<BufReader<ChildStdout>>)>,
    _temporary: Option<Directory>,
}

impl Process {
    /// A process of a test, which the other process runs too.
    fn new<F: Fn()>(test: F) -> Self {
        if let Some(directory) = std::env::var_os(BEGINS) {
            return Self { directory: directory.into(), cases: 0, begins: None, _temporary: None };
        }
        let mut again = harness::again(&test);
        let temporary = Directory::new(harness::name(&test).rsplit(':').next().unwrap());
        let mut child = again.env(BEGINS, &temporary.0).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let directory = temporary.0.clone();
        Self { directory, cases: 0, begins: Some((child, lines)), _temporary: Some(temporary) }
    }

    /// Twenty steps in one run, and ten and ten in two processes. `new` begins from parameters.
    fn check<S: Run>(
        &mut self,
        layout: &Layout,
        options: Options,
        context: &str,
        new: impl Fn(&[f32]) -> S,
        whole_saves: bool,
    ) {
        let context = format!("{} {context} {options:?}", layout.groups()[0].rule().name());
        let len = layout.len() as usize;
        let case = self.cases;
        self.cases += 1;
        let overflows = if options.skips() { &OVERFLOWS[case % OVERFLOWS.len()][..] } else { &[] };
        let grads = gradients(len, options.grads, overflows);
        let scale = [1.0, DIVISOR][case % 2];
        let steps = |run: &mut S, steps: Range<usize>| {
            steps.for_each(|t| run.take(&grads[t], Step::from(lr(t)).with_grad_scale(scale)));
        };
        let mut random = Random::new(5);
        let mut start: Vec<f32> = (0..len).map(|_| random.value() * 0.1).collect();
        let file = |end: &str| self.directory.join(format!("{case}.{end}"));
        let (path, end) = (file("safetensors"), file("bits"));
        let Some((_, lines)) = &mut self.begins else {
            let mut run = new(&start);
            steps(&mut run, 0..HALF);
            run.save(&path);
            if !whole_saves {
                run = new(&start);
                steps(&mut run, 0..HALF);
            }
            steps(&mut run, HALF..2 * HALF);
            write(&end, &run.bits());
            // A line of its own, whatever the test's program prints.
            println!("\n{case}");
            return;
        };
        let said = lines.map_while(Result::ok).find(|line| line.parse() == Ok(case));
        assert!(said.is_some(), "{context}: the process that begins has ended");
        // Other parameters to begin with; gaps between tensors are not in the file.
        layout.tensors().iter().for_each(|tensor| start[tensor.range()].fill(1.0));
        let mut run = new(&start);
        let loaded = run.load(&path);
        let skipped = overflows.iter().filter(|&&t| t < HALF).count();
        assert_eq!((loaded.steps, loaded.taken), (HALF as u64, (HALF - skipped) as u64), "{context}");
        steps(&mut run, HALF..2 * HALF);
        assert_same(&run.bits(), &read(&end), &context);
        [path, end].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }

    /// Whether there were cases, and the other process has gone through the same.
    fn finish(self) {
        assert!(self.cases > 0);
        if let Some((mut child, lines)) = self.begins {
            lines.for_each(drop);
            assert!(child.wait().unwrap().success());
        }
    }
}

fn write(path: &Path, bits: &Bits) {
    let view = |(name, bits): (&String, &Vec<u32>)| {
        let (dtype, bytes) = (safetensors::Dtype::U32, bytemuck::cast_slice(bits).to_vec());
        (name.clone(), (dtype, vec![bits.len()], bytes))
    };
    let owned: Vec<_> = bits.iter().map(view).collect();
    let views = owned.iter().map(|(name, (dtype, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn read(path: &Path) -> Bits {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    let words = |bytes: &[u8]| bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect();
    tensors.into_iter().map(|(name, tensor)| (name, words(tensor.data()))).collect()
}

/// All rules with all their options, and one with every option around it, in all formats.
#[test]
fn a_run_goes_on_in_another_process_on_the_cpu() {
    let mut process = Process::new(a_run_goes_on_in_another_process_on_the_cpu);
    let mut check = |layout: &Layout, context: &str, options: Options| {
        process.check(layout, options, context, |start| Host::new(layout.clone(), options, start), false);
    };
    for case in cases() {
        check(&odd(case.rule), case.name, Options::default());
    }
    for (nth, rule) in AnyRule::NAMES.iter().enumerate() {
        let case = cases_of(rule).pop().unwrap();
        for options in host_options(nth) {
            check(&odd(case.rule.clone()), case.name, options);
        }
    }
    for options in arounds() {
        check(&mixed(), "and others", options);
    }
    process.finish();
}

/// One of so many runs is compared with a run that does not save in between, whose kernels are compiled anew.
const WITHOUT_SAVE: usize = 8;

/// On the GPU every rule with every option and every format, whose combinations take turns.
#[test]
fn a_run_goes_on_in_another_process_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut process = Process::new(a_run_goes_on_in_another_process_on_the_gpu);
    let mut check = |layout: &Layout, context: &str, options: Options| {
        let saves = !process.cases.is_multiple_of(WITHOUT_SAVE);
        process.check(
            layout,
            options,
            context,
            |start| GpuRun::new(&gpu, layout.clone(), options, start),
            saves,
        );
    };
    for case in cases() {
        check(&odd(case.rule), case.name, Options::default());
    }
    for (nth, rule) in AnyRule::NAMES.iter().enumerate() {
        let case = cases_of(rule).pop().unwrap();
        for options in device_options(nth) {
            check(&odd(case.rule.clone()), case.name, options);
        }
    }
    for options in arounds() {
        check(&mixed(), "and others", options);
    }
    process.finish();
}
