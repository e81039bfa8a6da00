//! However a save ends, the old file is complete.

#![cfg(unix)]

use crate::common::{Directory, Saves, bits, on_cpu};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use wgpu_optim::checkpoint::{self, Load, Save};
use wgpu_optim::{AdamW, Group, Layout};

/// The variable that tells a test that it is the saving process, with the directory.
const CHILD: &str = "WGPU_OPTIM_TEST_SAVE";
/// The steps of that process, if they are counted.
const STEPS: &str = "WGPU_OPTIM_TEST_STEPS";
/// The number of kills; `cargo xtask crash` sets a larger one.
const KILLS: &str = "WGPU_OPTIM_TEST_KILLS";
/// The target in one file and in several.
const TARGETS: [&str; 2] = ["run.safetensors", "run.safetensors.index.json"];
/// Of this many kills at random moments of a process that saves most of the time, at least one is in a save.
const MANY: usize = 50;

fn layout() -> Layout {
    let group = Group::new("all", AdamW::default());
    Layout::new([group.tensor("w", [300, 1_000]).tensor("b", [17])]).unwrap()
}

/// The path of the saving process, if this is that process.
fn child() -> Option<(PathBuf, Save)> {
    let path = PathBuf::from(std::env::var_os(CHILD)?);
    let shard_bytes = path.to_str().unwrap().ends_with(".index.json").then_some(1 << 20);
    Some((path, Save { shard_bytes, ..Save::default() }))
}

/// The bits saved after `n` steps: a run is a function of its steps.
fn after(steps: u64, all: &mut Vec<Vec<Vec<u32>>>) -> &Vec<Vec<u32>> {
    while (all.len() as u64) <= steps {
        let run = on_cpu(layout()).after(all.len());
        all.push(bits(&run));
    }
    &all[steps as usize]
}

/// Kills a saving process at random moments. The checkpoint that it last reported, or a later one, is there
/// and complete.
fn kill<F: Fn()>(test: F, target: &str) {
    if let Some((path, save)) = child() {
        // After each of its steps, until it is killed, and says so.
        let mut run = on_cpu(layout());
        loop {
            run.steps(1).save(&path, &save).unwrap();
            println!("{}", run.optimizer.steps());
        }
    }
    let kills = std::env::var(KILLS).map_or(5, |kills| kills.parse().unwrap());
    let directory = Directory::new(target);
    let path = directory.file(target);
    let mut random = crate::common::Random::new(target.len() as u64);
    let mut all = Vec::new();
    let mut between = 0;
    for _ in 0..kills {
        let mut child = harness::again(&test)
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
        // A save takes some milliseconds: a kill at any moment of it.
        std::thread::sleep(std::time::Duration::from_micros(random.below(20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        said.read_to_string(&mut text).unwrap();
        let least = saves(&text).unwrap();
        let mut run = on_cpu(layout());
        let loaded = checkpoint::load(&mut run.engine(), &path, &Load::default()).unwrap();
        assert!(loaded.steps == least || loaded.steps == least + 1, "{} of {least}", loaded.steps);
        assert!(&bits(&run) == after(loaded.steps, &mut all), "after {} steps", loaded.steps);
        between += usize::from(partial(&directory) > 0);
    }
    eprintln!("{kills} kills, {between} of them while a file was being written");
    assert!(between > 0 || kills < MANY, "no kill was in a save");
}

/// The number of incomplete files.
fn partial(directory: &Directory) -> usize {
    directory.names().iter().filter(|name| name.ends_with(".partial")).count()
}

#[test]
fn killed_while_saving() {
    kill(killed_while_saving, TARGETS[0]);
}

#[test]
fn killed_while_saving_shards() {
    kill(killed_while_saving_shards, TARGETS[1]);
}

/// Kills at every report of progress, from before the first byte to after the last. The old checkpoint is
/// there, and the next save removes all leftovers.
#[test]
fn killed_at_every_report_of_progress() {
    if let Some((path, save)) = child() {
        let reports: usize = std::env::var(STEPS).unwrap().parse().unwrap();
        let mut run = on_cpu(layout());
        run.steps(2);
        let mut seen = 0;
        let progress = |_, _| {
            if seen == reports {
                let me = std::process::id().to_string();
                Command::new("kill").args(["-KILL", &me]).status().unwrap();
                unreachable!("it has been killed");
            }
            seen += 1;
        };
        checkpoint::save_with_progress(&mut run.engine(), &path, &save, progress).unwrap();
        return;
    }
    for target in TARGETS {
        let directory = Directory::new(&format!("progress-{target}"));
        let path = directory.file(target);
        let mut run = on_cpu(layout());
        let save = Save { shard_bytes: target.ends_with(".json").then_some(1 << 20), ..Save::default() };
        run.steps(1).save(&path, &save).unwrap();
        let names = directory.names();
        let mut killed = 0;
        loop {
            let status = harness::again(&killed_at_every_report_of_progress)
                .env(CHILD, &path)
                .env(STEPS, killed.to_string())
                .stdout(Stdio::null())
                .status()
                .unwrap();
            if status.success() {
                break;
            }
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
            // Before the first byte there is none.
            assert_eq!(partial(&directory) > 0, killed > 0, "{target}, {killed}");
            let mut loaded = on_cpu(layout());
            loaded.load(&path, &Load::default()).unwrap();
            assert!(bits(&loaded) == bits(&run), "{target}, {killed}");
            killed += 1;
        }
        // Of six tensors one each, and of both ends.
        assert!(killed > 6, "{killed}");
        let mut loaded = on_cpu(layout());
        assert_eq!(loaded.load(&path, &Load::default()).unwrap().steps, 2);
        assert!(bits(&loaded) == bits(run.steps(1)), "{target}");
        assert_eq!(directory.names().len(), names.len(), "{:?}", directory.names());
    }
}

/// A limit of a file's size acts as a full disk: the save returns an error, no leftovers remain, and the old
/// files are complete.
#[test]
fn a_full_disk() {
    if let Some((path, save)) = child() {
        // Under the limit: SIGXFSZ is ignored by the shell that has set it.
        let error = on_cpu(layout()).steps(2).save(&path, &save).unwrap_err();
        assert!(matches!(error, checkpoint::Error::Io { what: "write", .. }), "{error}");
        return;
    }
    for target in TARGETS {
        let directory = Directory::new(&format!("full-{target}"));
        let path = directory.file(target);
        let mut run = on_cpu(layout());
        let sharded = target.ends_with(".json");
        let save = Save { shard_bytes: sharded.then_some(1 << 20), ..Save::default() };
        run.steps(1).save(&path, &save).unwrap();
        let names = directory.names();
        let size = |name: &String| std::fs::metadata(directory.file(name)).unwrap().len();
        let size = names.iter().map(size).max().unwrap();
        // In the header, in the data, at the end of the largest file: in blocks of 512 bytes.
        for blocks in [0, 1, size / 1024, size / 512] {
            let again = harness::again(&a_full_disk);
            let status = Command::new("sh")
                .args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")])
                .arg(again.get_program())
                .args(again.get_args())
                .env(CHILD, &path)
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{target}: {blocks} blocks");
            assert_eq!(directory.names(), names);
            let mut loaded = on_cpu(layout());
            loaded.load(&path, &Load::default()).unwrap();
            assert_eq!(bits(&loaded), bits(&run));
        }
    }
}
