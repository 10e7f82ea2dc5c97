//! The farm's small words: arm, phase, tier, accelerator.

/// An enum whose values are words in files, with the list of them all and the word of each.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// As written in files and output.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                $name::ALL.iter().copied().find(|w| w.as_str() == text).ok_or_else(|| {
                    let known: Vec<&str> = $name::ALL.iter().map(|w| w.as_str()).collect();
                    format!("`{text}` is not one of {}", known.join(", "))
                })
            }
        }
    };
}

pub(crate) use words;

/// A number and what is counted, in the singular or plural: `1 trial`, `3 processes`.
pub fn counted(n: impl TryInto<u64>, one: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    match one {
        _ if n == 1 => format!("{n} {one}"),
        _ if one.ends_with('s') => format!("{n} {one}es"),
        _ => format!("{n} {one}s"),
    }
}

words! {
    /// One condition of the experiment.
    Arm {
        /// Patch applied in the middle of the load.
        Loaded = "loaded",
        /// Applied in the middle of the load, and in force for long: shows what running with the patch does.
        Soak = "soak",
        /// Patch applied while idle; the load starts afterwards.
        Quiescent = "quiescent",
        /// The same load without a patch.
        Control = "control",
        /// Applied, reverted and applied again, mid-load.
        Reapply = "reapply",
        /// Several patches on top of each other, applied mid-load.
        Stack = "stack",
    }
}

impl Arm {
    /// Whether the patch is applied at all.
    pub fn patched(self) -> bool {
        self != Self::Control
    }

    /// Whether the tier bounds how often its trials fail. What the other arms lack is counted trial by trial.
    pub fn is_bounded(self) -> bool {
        matches!(self, Self::Loaded | Self::Soak | Self::Stack)
    }
}

words! {
    /// Part of a trial.
    Phase {
        /// Power-on, or the fork from a checkpoint, to the first answer of the probe.
        Boot = "boot",
        /// The machine grows old under load.
        Age = "age",
        /// What a boot or a fork stirred up settles down.
        Settle = "settle",
        /// The load is measured without the patch.
        Baseline = "baseline",
        /// The patch is being loaded.
        Apply = "apply",
        /// Tasks switch to the patched functions.
        Transition = "transition",
        /// The load runs with the patch in force.
        Soak = "soak",
        /// The patch is taken back; the load goes on.
        Revert = "revert",
        /// How often the patched functions are called is counted, with the patch out of the way.
        Reach = "reach",
        /// The machine is being ended.
        End = "end",
    }
}

words! {
    /// Where a qualified patch may go next.
    Tier {
        /// First public tier.
        Proposed = "proposed",
        /// Second tier.
        Updates = "updates",
        /// Everybody.
        Stable = "stable",
    }
}

// The macro has no place for `#[default]`, which one of four lists would need.
#[allow(clippy::derivable_impls)]
impl Default for Tier {
    fn default() -> Self {
        Self::Proposed
    }
}

words! {
    /// What runs the guest's instructions.
    Accel {
        /// The processor.
        Kvm = "kvm",
        /// QEMU's emulation.
        Tcg = "tcg",
    }
}

impl Accel {
    /// Factor on all deadlines. Emulation was measured 3 to 20 times slower than KVM for single operations, but deadlines here are
    /// generous for KVM already; doubling them keeps quiet control machines free of findings on two shared cores.
    pub fn scale(self) -> f64 {
        match self {
            Self::Kvm => 1.0,
            Self::Tcg => 2.0,
        }
    }
}
