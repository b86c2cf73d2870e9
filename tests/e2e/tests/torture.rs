//! Real kills: the torture loop (I1, I2, I3, I6, I7, I10, I11, I13; P1–P6, P30, P31, N1, N4, D4, D5, M7,
//! S1, S4, S13, C1, C2, C4, C5, C7, C8, C13).
//!
//! Two minutes, or as many as `FARSHORE_TORTURE_MINUTES` says; `cargo xtask torture` runs thirty.

use farshore_e2e::torture::{self, Options};

#[test]
fn faults_one_after_another_lose_nothing() {
    let options = Options::from_environment().expect("settings of the torture");
    match torture::run(&options) {
        Ok(summary) => println!("{summary}"),
        Err(error) => panic!("{error:#}"),
    }
}
