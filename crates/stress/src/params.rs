//! Parameters of a stressor, `key=value`, checked against what it declares: an unknown key or a value out of bounds is
//! refused before anything starts.

use std::collections::BTreeMap;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// A whole number within bounds.
    Count(u64, u64),
    /// Bytes within bounds, with an optional suffix K, M or G.
    Size(u64, u64),
    /// An absolute path.
    Path,
}

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
}

/// Checked values of all parameters of one stressor.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    numbers: BTreeMap<&'static str, u64>,
    texts: BTreeMap<&'static str, String>,
}

impl Params {
    /// Reads `args` against `specs`; the error names the parameter and what would be right.
    pub(crate) fn parse(specs: &[Spec], args: &[String]) -> Result<Self, String> {
        let mut given: BTreeMap<&str, &str> = BTreeMap::new();
        for arg in args {
            let (key, value) =
                arg.split_once('=').ok_or_else(|| format!("`{arg}` is not of the form key=value"))?;
            if !specs.iter().any(|s| s.name == key) {
                let known: Vec<_> = specs.iter().map(|s| s.name).collect();
                return Err(format!("unknown parameter `{key}`; known are {}", known.join(", ")));
            }
            if given.insert(key, value).is_some() {
                return Err(format!("parameter `{key}` is given twice"));
            }
        }
        let mut params = Self { numbers: BTreeMap::new(), texts: BTreeMap::new() };
        for spec in specs {
            let value = given.get(spec.name).copied().unwrap_or(spec.default);
            match spec.form {
                Form::Count(min, max) => {
                    let n =
                        value.parse().map_err(|_| format!("{}={value}: not a whole number", spec.name))?;
                    params.numbers.insert(spec.name, within(spec.name, value, n, min, max)?);
                }
                Form::Size(min, max) => {
                    let n =
                        size(value).ok_or_else(|| format!("{}={value}: not a size like 8M", spec.name))?;
                    params.numbers.insert(spec.name, within(spec.name, value, n, min, max)?);
                }
                Form::Path if value.starts_with('/') && !value.contains('\0') => {
                    params.texts.insert(spec.name, value.to_owned());
                }
                Form::Path => return Err(format!("{}={value}: not an absolute path", spec.name)),
            }
        }
        Ok(params)
    }

    /// A number or size in bytes. The name must be one the stressor declares.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.numbers[name]
    }

    /// A path. The name must be one the stressor declares.
    pub(crate) fn text(&self, name: &str) -> &str {
        &self.texts[name]
    }
}

fn within(name: &str, text: &str, n: u64, min: u64, max: u64) -> Result<u64, String> {
    if (min..=max).contains(&n) { Ok(n) } else { Err(format!("{name}={text}: must be {min} to {max}")) }
}

fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[Spec] = &[
        Spec { name: "threads", form: Form::Count(1, 64), default: "4", help: "" },
        Spec { name: "map", form: Form::Size(65536, 1 << 30), default: "8M", help: "" },
        Spec { name: "dir", form: Form::Path, default: "/var/tmp", help: "" },
    ];

    fn parse(args: &[&str]) -> Result<Params, String> {
        Params::parse(SPECS, &args.iter().map(|&a| a.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn defaults_and_suffixes() {
        let p = parse(&["map=64K"]).unwrap();
        assert_eq!((p.number("threads"), p.number("map"), p.text("dir")), (4, 65536, "/var/tmp"));
    }

    #[test]
    fn each_mistake_is_named() {
        for (args, part) in [
            (&["threds=1"][..], "unknown parameter `threds`; known are threads, map, dir"),
            (&["threads"], "`threads` is not of the form key=value"),
            (&["threads=0"], "threads=0: must be 1 to 64"),
            (&["threads=-1"], "threads=-1: not a whole number"),
            (&["threads=1", "threads=2"], "`threads` is given twice"),
            (&["map=8X"], "map=8X: not a size like 8M"),
            (&["map="], "map=: not a size"),
            (&["map=99999999999G"], "map=99999999999G: not a size"),
            (&["dir=tmp"], "dir=tmp: not an absolute path"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
