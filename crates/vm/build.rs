//! Builds the guest binary statically, so that it runs on any x86-64 guest, and hands its path to the crate.
//!
//! A nested cargo is the plain way: the guest needs other flags (`crt-static`) than the farm, which cargo can't give to one package
//! of a build. It has a target folder of its own inside the workspace's, shared by all profiles.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest_dir = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let stress = manifest_dir.join("../stress");
    println!("cargo:rerun-if-changed={}", stress.join("src").display());
    println!("cargo:rerun-if-changed={}", stress.join("Cargo.toml").display());

    // OUT_DIR is TARGET/PROFILE/build/NAME-HASH/out.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("guest");
    let target = "x86_64-unknown-linux-gnu";
    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .args(["build", "--release", "--target", target, "--manifest-path"])
        .arg(stress.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "building the guest binary failed: {status}");
    let binary: &Path = &target_dir.join(target).join("release/klpfarm-stress");
    println!("cargo:rustc-env=KLPFARM_GUEST_BINARY={}", binary.display());
}
