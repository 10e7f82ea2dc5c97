//! Pure: pipeline file to plan, events, and judging a run. No I/O but what a caller hands in.

pub mod yaml;
