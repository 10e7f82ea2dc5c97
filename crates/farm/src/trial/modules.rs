//! Modules that the patches need: what they depend on, and what they patch besides the kernel itself. Without them the kernel would refuse a
//! good patch, or take it and never run it.

use std::time::Duration;

use klpfarm_model::needed_modules;

use super::{Dispatcher, Step};
use crate::guest;

impl Dispatcher {
    pub(super) fn load_modules(&mut self, now: Duration) {
        let needed = needed_modules(&self.plan.patches, &self.release);
        if needed.is_empty() {
            self.next_op(now);
            return;
        }
        let line = guest::load_modules(needed.keys().map(String::as_str));
        self.step = Step::Modules;
        self.exec(now, &line, self.scaled(60));
    }

    pub(super) fn modules_loaded(&mut self, now: Duration, code: i32, out: &str) {
        let missing = out.lines().find_map(|line| line.strip_prefix("missing "));
        let Some((module, why)) = missing.map(|m| m.split_once(' ').unwrap_or((m, ""))) else {
            if code == 0 {
                self.next_op(now);
            } else {
                self.farm_error(format!(
                    "loading the modules that the patches need ended with status {code}: {}",
                    out.trim()
                ));
            }
            return;
        };
        let needed = needed_modules(&self.plan.patches, &self.release);
        let patch = needed.get(module).map(|p| p.name.as_str()).unwrap_or_default();
        self.farm_error(if why.contains("not found") {
            format!(
                "the image has no module {module}, which patch {patch} depends on: add the package that has it to the recipe"
            )
        } else {
            format!("module {module}, which patch {patch} depends on, can't be loaded in the guest: {why}")
        });
    }
}
