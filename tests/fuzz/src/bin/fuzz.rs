//! libFuzzer's front end to one target, which `FARSHORE_FUZZ_TARGET` names. `cargo xtask fuzz` builds
//! and runs it.

#![no_main]

use farshore_fuzz::Target;
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;
use std::sync::OnceLock;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    let name = std::env::var("FARSHORE_FUZZ_TARGET").expect("FARSHORE_FUZZ_TARGET names a target");
    Target::named(&name).unwrap_or_else(|| panic!("there is no target {name}"))
}

fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(target);
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    (target.run)(bytes);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(taken <= target.memory_bytes_max, "{taken} bytes of memory for {}", bytes.len());
});
