//! Whatever ends a save, the file from before is whole.

#![cfg(unix)]

use crate::common::{Directory, Run, quiet};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use wgpu_optim::checkpoint::{self, Load, Save};
use wgpu_optim::{AdamW, Group, Layout};

/// Tells the test that it is the process to be killed, and where it saves.
const CHILD: &str = "WGPU_OPTIM_TEST_SAVE";
/// How often it is killed; `cargo xtask crash` asks for more.
const KILLS: &str = "WGPU_OPTIM_TEST_KILLS";

fn layout() -> Layout<AdamW> {
    let group = Group::new("all", AdamW::default());
    Layout::new([group.tensor("w", [300, 1_000]).tensor("b", [17])]).unwrap()
}

/// Saves after each of its steps, until it is killed, and says so.
fn child(path: &Path) -> ! {
    let mut run = Run::new(layout());
    let sharded = path.to_str().unwrap().ends_with(".index.json");
    let save = Save { shard_bytes: sharded.then_some(1 << 20), ..Save::default() };
    loop {
        run.steps(1).save(path, &save).unwrap();
        println!("{}", run.optimizer.steps());
    }
}

/// What is saved after so many steps, bit for bit: a run is a function of its steps.
fn after(steps: u64, all: &mut Vec<Vec<Vec<u32>>>) -> &Vec<Vec<u32>> {
    let mut run = Run::new(layout());
    while (all.len() as u64) <= steps {
        if all.is_empty() {
            all.push(run.bits());
        } else {
            run = Run::new(layout());
            run.steps(all.len());
            all.push(run.bits());
        }
    }
    &all[steps as usize]
}

/// Kills a saving process at random moments: what it has said to be saved is there, whole, or what came after it.
fn kill(name: &str, file: &str, kills: usize) {
    if let Some(path) = std::env::var_os(CHILD) {
        child(Path::new(&path));
    }
    let directory = Directory::new(name);
    let path = directory.file(file);
    let mut random = crate::common::Random(name.len() as u64);
    let mut all = Vec::new();
    let mut between = 0;
    for _ in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&format!("crash::{name}"), "--exact", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = child.stdout.take().unwrap();
        // Until it has saved at least once; the file may be that of the process before it.
        let mut text = String::new();
        let mut bytes = [0; 64];
        let saves = |text: &str| text.lines().filter_map(|line| line.trim().parse::<u64>().ok()).max();
        let wanted = 1 + random.below(3);
        while saves(&text).unwrap_or(0) < wanted {
            let n = said.read(&mut bytes).unwrap();
            assert!(n > 0, "the process that saves has ended: {text}");
            text += std::str::from_utf8(&bytes[..n]).unwrap();
        }
        // A save takes some milliseconds: anywhere in it.
        std::thread::sleep(std::time::Duration::from_micros(random.below(20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        said.read_to_string(&mut text).unwrap();
        let least = saves(&text).unwrap();
        let mut run = Run::new(layout());
        let loaded = checkpoint::load(&mut run.engine(), &path, &Load::default(), &mut quiet).unwrap();
        assert!(loaded.steps == least || loaded.steps == least + 1, "{} of {least}", loaded.steps);
        assert!(&run.bits() == after(loaded.steps, &mut all), "after {} steps", loaded.steps);
        let left = directory.names().iter().filter(|name| name.ends_with(".partial")).count();
        between += usize::from(left > 0);
    }
    eprintln!("{kills} kills, {between} of them while a file was being written");
}

fn kills() -> usize {
    std::env::var(KILLS).map_or(5, |kills| kills.parse().unwrap())
}

#[test]
fn killed_while_saving() {
    kill("killed_while_saving", "run.safetensors", kills());
}

#[test]
fn killed_while_saving_shards() {
    kill("killed_while_saving_shards", "run.safetensors.index.json", kills());
}

/// A limit of a file's size stands for a full disk: the error is an error, nothing is left lying, and the old file is whole.
#[test]
fn a_full_disk() {
    const STEPS: &str = "a_full_disk";
    if let Some(path) = std::env::var_os(CHILD) {
        // Under the limit: SIGXFSZ is ignored by the shell that has set it.
        let mut run = Run::new(layout());
        let error = run.steps(2).save(Path::new(&path), &Save::default()).unwrap_err();
        assert!(matches!(error, checkpoint::Error::Io { what: "write", .. }), "{error}");
        return;
    }
    let directory = Directory::new(STEPS);
    let path = directory.file("run.safetensors");
    let mut run = Run::new(layout());
    run.steps(1).save(&path, &Save::default()).unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    // In the header, in the data, at the end: in blocks of 512 bytes.
    for blocks in [0, 1, size / 1024, size / 512] {
        let status = Command::new("sh")
            .args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .args([&format!("crash::{STEPS}"), "--exact"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{blocks} blocks");
        assert_eq!(directory.names(), ["run.safetensors"]);
        let mut loaded = Run::new(layout());
        loaded.load(&path, &Load::default()).unwrap();
        assert_eq!(loaded.bits(), run.bits());
    }
}
