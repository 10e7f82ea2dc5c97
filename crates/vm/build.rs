//! Builds what is carried inside `klpfarm` and runs elsewhere, and hands the paths to the crate: the guest binary, statically, so that it
//! runs on any x86-64 guest, and the plugin of QEMU that counts calls.
//!
//! A nested cargo is the plain way: the guest needs other flags (`crt-static`) than the farm, which cargo can't give to one package
//! of a build, and neither is a library of the farm. They have a target folder of their own inside the workspace's, shared by all profiles.

use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let crates = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    // OUT_DIR is TARGET/PROFILE/build/NAME-HASH/out.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("guest");
    let built = target_dir.join(TARGET).join("release");

    build(&crates.join("stress"), &target_dir, "-C target-feature=+crt-static");
    println!("cargo:rustc-env=KLPFARM_GUEST_BINARY={}", built.join("klpfarm-stress").display());
    build(&crates.join("plugin"), &target_dir, "");
    println!("cargo:rustc-env=KLPFARM_PLUGIN={}", built.join("libklpfarm_plugin.so").display());
}

fn build(package: &Path, target_dir: &Path, flags: &str) {
    println!("cargo:rerun-if-changed={}", package.join("src").display());
    println!("cargo:rerun-if-changed={}", package.join("Cargo.toml").display());
    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .args(["build", "--release", "--target", TARGET, "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "building {} failed: {status}", package.display());
}
