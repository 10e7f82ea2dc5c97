//! How a function is called, whatever kernel and compiler made of its name.

use std::borrow::Cow;

/// The name that the same function has on every kernel: system calls as `sys_X`, functions in Rust as a path.
pub(crate) fn canonical(name: &str) -> Cow<'_, str> {
    if let Some(call) = system_call(name) {
        return call;
    }
    match name.strip_prefix("_R").and_then(rust_path) {
        Some(path) => Cow::Owned(path),
        None => Cow::Borrowed(name),
    }
}

/// `__x64_sys_X`, `__ia32_compat_sys_X` and the like (since 4.17), `__se_sys_X`, `__do_sys_X` within them, `SyS_X` (before).
fn system_call(name: &str) -> Option<Cow<'_, str>> {
    if let Some(call) = name.strip_prefix("SyS_").or_else(|| name.strip_prefix("SYSC_")) {
        return Some(Cow::Owned(format!("sys_{call}")));
    }
    if let Some(call) = name.strip_prefix("compat_SyS_").or_else(|| name.strip_prefix("C_SYSC_")) {
        return Some(Cow::Owned(format!("compat_sys_{call}")));
    }
    const HEADS: [&str; 9] =
        ["__x64_", "__x32_", "__ia32_", "__arm64_", "__s390x_", "__riscv_", "__se_", "__do_", "__powerpc_"];
    let call = HEADS.iter().find_map(|head| name.strip_prefix(head))?;
    (call.starts_with("sys_") || call.starts_with("compat_sys_")).then_some(Cow::Borrowed(call))
}

/// The path in a symbol of Rust's `v0` mangling, `rest` of it behind `_R`: its identifiers, without generic arguments resolved. `None` if
/// there is none. Reads no more of the grammar than it needs: a name that is not quite right still tells its last parts.
fn rust_path(rest: &str) -> Option<String> {
    let bytes = rest.as_bytes();
    let mut parts: Vec<&str> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            // A disambiguator, a reference to an earlier part, a constant: up to its underscore.
            b's' | b'B' | b'K' | b'L' => at += bytes[at..].iter().position(|&b| b == b'_')? + 1,
            b'0'..=b'9' => {
                let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                let len: usize = rest[at..at + digits].parse().ok()?;
                at += digits;
                at += usize::from(len > 0 && bytes.get(at) == Some(&b'_'));
                let part = rest.get(at..at + len)?;
                if len > 0 && parts.last() != Some(&part) {
                    parts.push(part);
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    (!parts.is_empty()).then(|| parts.join("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_have_one_name() {
        for name in
            ["__x64_sys_demo", "__se_sys_demo", "__ia32_sys_demo", "__do_sys_demo", "SyS_demo", "SYSC_demo"]
        {
            assert_eq!(canonical(name), "sys_demo");
        }
        assert_eq!(canonical("__ia32_compat_sys_demo"), "compat_sys_demo");
        assert_eq!(canonical("__do_system"), "__do_system");
        assert_eq!(canonical("sys_demo"), "sys_demo");
    }

    #[test]
    fn paths_of_rust() {
        for (name, path) in [
            ("_RNvNtCs_4core9panicking9panic_fmt", "core::panicking::panic_fmt"),
            ("_RNvCs8h9xZ_7___rustc17rust_begin_unwind", "__rustc::rust_begin_unwind"),
            ("_RNvMs_Cs_9rust_demo4NodeNtB4_4Node6update", "rust_demo::Node::update"),
            ("_RNCNvCs1a_4demo4work0", "demo::work"),
            ("_R", "_R"),
            ("_RNv99x", "_RNv99x"),
            ("_Rs", "_Rs"),
        ] {
            assert_eq!(canonical(name), path);
        }
    }
}
