//! Part of klpfarm.
