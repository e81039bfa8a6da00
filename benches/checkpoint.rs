//! Saving the state of Adam, beside `cp` of the same file to the same disk and reading the state back from
//! the device.
//!
//!     cargo bench --bench checkpoint --features checkpoint -- [MILLIONS OF PARAMETERS] [DIRECTORY]
//!
//! A round has one of each, in turns: `save` with its flush to the disk, `cp` and `sync` of the copy, and a
//! read of all state to host memory through a staging buffer as large as saving's. It prints medians, and the
//! time of copying and reading back together, divided by the time of saving.

use harness::{Gpu, median, wgpu};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use wgpu_optim::checkpoint::{self, Save};
use wgpu_optim::{Adam, Group, Layout, Optimizer};

const ROUNDS: usize = 9;
/// Bytes per read.
const STAGING: u64 = 8 << 20;

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Reads all state and discards it.
fn read_back(gpu: &Gpu, optimizer: &Optimizer, staging: &wgpu::Buffer, memory: &mut [u8]) {
    for slot in ["exp_avg", "exp_avg_sq"] {
        for range in optimizer.state(slot, "w").expect("a slot of Adam") {
            let bytes = range.len * range.element_bytes;
            for start in (0..bytes).step_by(STAGING as usize) {
                let size = STAGING.min(bytes - start);
                let mut encoder = gpu.encoder();
                encoder.copy_buffer_to_buffer(range.buffer, range.offset + start, staging, 0, Some(size));
                encoder.map_buffer_on_submit(staging, wgpu::MapMode::Read, .., |result| {
                    result.expect("a staging buffer can be mapped");
                });
                gpu.run(encoder);
                let mapped = staging.get_mapped_range(..).expect("mapped, as the submission is done");
                memory[..size as usize].copy_from_slice(&mapped[..size as usize]);
                drop(mapped);
                staging.unmap();
            }
        }
    }
}

fn save(gpu: &Gpu, optimizer: &mut Optimizer, path: &Path) {
    let mut engine = checkpoint::Gpu::new(optimizer, &gpu.queue);
    checkpoint::save(&mut engine, path, &Save::default()).expect("room on the disk");
}

fn main() {
    // Cargo adds its own `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let millions: u64 = arguments.first().map_or(128, |n| n.parse().expect("millions of parameters"));
    let directory = arguments.get(1).map_or(PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let gpu = harness::open().expect("an adapter");
    let elements = millions << 20;
    let group = Group::new("all", Adam::default()).tensor("w", [elements]);
    let mut optimizer =
        Optimizer::new(&gpu.device, Layout::new([group]).expect("a good layout")).expect("enough memory");
    // A disk could omit zeros from a file.
    for slot in ["exp_avg", "exp_avg_sq"] {
        for range in optimizer.state(slot, "w").expect("a slot of Adam") {
            let values: Vec<f32> = (0..range.len).map(|i| (i as f32).sin()).collect();
            gpu.write(range.buffer, range.offset, &values);
        }
    }
    gpu.queue.submit([]);
    gpu.wait();
    let staging = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: STAGING,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut memory = vec![0; STAGING as usize];
    let [path, saved_to, copy] =
        ["bench", "bench-save", "bench-copy"].map(|name| directory.join([name, ".safetensors"].concat()));
    save(&gpu, &mut optimizer, &path);
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        // Both make a new file, and each comes first by turns: the first finds the page cache in another
        // state.
        let (mut saved, mut copied) = (0.0, 0.0);
        for turn in [round % 2, 1 - round % 2] {
            if turn == 0 {
                saved = seconds(|| save(&gpu, &mut optimizer, &saved_to));
                let _ = std::fs::remove_file(&saved_to);
            } else {
                copied = seconds(|| {
                    let status = Command::new("cp").args([&path, &copy]).status().expect("cp");
                    assert!(status.success());
                    File::open(&copy).and_then(|file| file.sync_all()).expect("a copy");
                });
                let _ = std::fs::remove_file(&copy);
            }
        }
        let loaded = seconds(|| {
            let mut engine = checkpoint::Gpu::new(&mut optimizer, &gpu.queue);
            checkpoint::load(&mut engine, &path, &checkpoint::Load::default()).expect("what was saved");
        });
        let read = seconds(|| read_back(&gpu, &optimizer, &staging, &mut memory));
        println!(
            "round {round}: save {saved:.2} s, cp {copied:.2} s, read back {read:.2} s, load {loaded:.2} s"
        );
        for (times, time) in times.iter_mut().zip([saved, copied, read, loaded]) {
            times.push(time);
        }
    }
    let bytes = std::fs::metadata(&path).expect("a file").len() as f64;
    let _ = std::fs::remove_file(&path);
    let [save, copy, read, load] = times.map(median);
    let rate = |seconds: f64| bytes / seconds / 1e9;
    println!("{}, {millions} Mi parameters, {bytes} bytes, medians of {ROUNDS}:", gpu.info.name);
    for (what, seconds) in [("save", save), ("cp and sync", copy), ("read back", read), ("load", load)] {
        println!("  {what:12} {seconds:6.2} s  {:6.2} GB/s", rate(seconds));
    }
    println!("  bandwidth of saving, of that of copying and reading back: {:.2}", (copy + read) / save);
}
