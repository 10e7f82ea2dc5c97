//! Recipes to bootable images, kept by content.
//!
//! A [`Recipe`] (YAML) says what a guest is made of, or names a ready-made disk. [`Store::build`] turns it into an
//! [`Image`]: disk, kernel, initrd, SSH keys, the root file system to build modules in, and a [`Manifest`] that says
//! where all of it came from. An image's folder is named by the hash of its recipe and appears in one rename, so an
//! image that can be seen is whole. Nothing is printed; progress goes to a callback.
//!
//! A [`CheckpointStore`] keeps [`Checkpoint`]s of machines in the same way.

mod add_modules;
mod archive;
mod check;
mod checkpoint;
mod checkpoint_store;
mod command;
mod error;
mod find;
mod fsutil;
mod guest;
mod kernel;
mod manifest;
mod module;
mod prebuilt;
mod progress;
mod recipe;
mod rootfs;
mod sandbox;
mod seed;
mod sparse;
mod store;

pub use add_modules::add_modules;
pub use checkpoint::{
    CHECKPOINT_FILES, CHECKPOINT_KEY, CHECKPOINT_SCHEMA, Checkpoint, CheckpointFile, CheckpointManifest, Key,
    Made,
};
pub use checkpoint_store::{Begun, CheckpointStore, Draft};
pub use command::Command;
pub use error::{Error, MissingTool};
pub use find::{DEFAULT, find, shipped};
pub use kernel::release_of_bzimage;
pub use manifest::{FileEntry, Image, Manifest, Package, SCHEMA, Ssh};
pub use progress::{Progress, Sink};
pub use recipe::{
    BuildSpec, DiskFormat, KernelPackages, PrebuiltDisk, PrebuiltFile, PrebuiltSpec, Recipe, Security, Seed,
    Source, SshSpec,
};
pub use sandbox::{may_build, missing_tools};
pub use store::{BuildOptions, Hold, Store};

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;
