//! Failures that no adapter produces on request.

use super::staging::{ASKED, Asked, FAILED};
use super::*;
use crate::{AdamW, Group};
use crate::{DeviceError, OffloadError};
use core::sync::atomic::Ordering;

/// A copy that fails, and one that cannot be read.
#[test]
fn what_failed_can_be_requested_again() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [10])]).unwrap();
    let mut offload = Offload::new(&gpu.device, layout, Options::default(), vec![0.0; 10]).unwrap();
    let buffer = gpu.buffer(40);
    let request = |offload: &mut Offload| {
        let mut encoder = gpu.encoder();
        offload.request(&mut encoder, &buffer, 0).unwrap();
        gpu.run(encoder);
    };
    let advance = |offload: &mut Offload| offload.advance(&gpu.queue, &buffer, 0.1);
    let done = Ok(Progress::Done(None));
    offload.staging[0].state.store(FAILED, Ordering::Release);
    assert!(matches!(advance(&mut offload), Err(OffloadError::Device(DeviceError::Refused { .. }))));
    assert_eq!(advance(&mut offload), Err(OffloadError::NotRequested { chunk: 0 }));
    request(&mut offload);
    assert_eq!(advance(&mut offload), done);
    // Without a check of the error.
    offload.staging[0].state.store(FAILED, Ordering::Release);
    request(&mut offload);
    assert_eq!(advance(&mut offload), done);
    request(&mut offload);
    offload.staging[0].buffer.unmap();
    assert!(matches!(advance(&mut offload), Err(OffloadError::Device(DeviceError::Refused { .. }))));
    request(&mut offload);
    assert_eq!(advance(&mut offload), done);
    assert_eq!(offload.optimizer().steps(), 3);
}

/// A failed request is dropped when a newer one is in progress.
#[test]
fn a_late_drop_is_of_its_own_request() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [10])]).unwrap();
    let mut offload = Offload::new(&gpu.device, layout, Options::default(), vec![0.0; 10]).unwrap();
    let buffer = gpu.buffer(40);
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &buffer, 0).unwrap();
    let late = Asked(offload.staging[0].state.clone());
    drop(encoder);
    assert_eq!(offload.wanted(), Some(0));
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &buffer, 0).unwrap();
    // As if its callback had ended only now.
    late.0.store(ASKED, Ordering::Release);
    drop(late);
    assert_eq!(offload.wanted(), None);
    gpu.run(encoder);
    assert_eq!(offload.advance(&gpu.queue, &buffer, 0.1), Ok(Progress::Done(None)));
}
