//! Android's logcat, which takes the first word of a kernel message for the name of a program.

use crate::scan::digits;

/// The message of a line of logcat that the kernel wrote, behind the kernel's own tag; `None` if it is none.
pub(crate) fn kernel_line(line: &[u8]) -> Option<Vec<u8>> {
    let (tag, text) = match line {
        [_, b'/', ..] => brief(line)?,
        [_, _, b'-', _, _, b' ', ..] => long(line)?,
        [_, _, _, _, b'-', _, _, b'-', ..] => long(line.get(5..)?)?,
        _ => return None,
    };
    let mut out = b"kernel: ".to_vec();
    let tag = tag.trim_ascii();
    if !tag.is_empty() {
        out.extend_from_slice(tag);
        out.extend_from_slice(b": ");
    }
    out.extend_from_slice(text);
    Some(out)
}

fn level(b: u8) -> bool {
    matches!(b, b'V' | b'D' | b'I' | b'W' | b'E' | b'F')
}

/// `W/TAG     (    0): TEXT`: tag and text.
fn brief(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let window = &line[..line.len().min(120)];
    let end =
        memchr::memmem::find(window, b"): ").or_else(|| window.ends_with(b"):").then(|| window.len() - 2))?;
    let open = memchr::memrchr(b'(', &window[..end])?;
    let sound = level(line[0]) && line[open + 1..end].trim_ascii() == b"0";
    sound.then(|| (&line[2..open], line.get(end + 3..).unwrap_or(&[])))
}

/// `11-02 10:00:00.123     0     0 W TAG     : TEXT`, with or without the user before the pid: tag and text.
fn long(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let time = line.get(..18)?;
    let sound = digits(time) == 2 && digits(&time[3..]) == 2 && digits(&time[6..]) == 2 && time[8] == b':';
    if !sound || time[14] != b'.' {
        return None;
    }
    let mut at = 18;
    let mut zeros = 0;
    for _ in 0..4 {
        at += line[at..].iter().take(8).take_while(|b| **b == b' ').count();
        let word = line[at..].iter().take(16).take_while(|b| **b != b' ').count();
        match &line[at..at + word] {
            b"0" => zeros += 1,
            b"root" if zeros == 0 => {}
            [b] if level(*b) && zeros >= 2 => {
                let tail = line.get(at + 2..)?;
                let colon = memchr::memmem::find(&tail[..tail.len().min(80)], b": ")
                    .or_else(|| tail.ends_with(b":").then(|| tail.len() - 1))?;
                return Some((&tail[..colon], tail.get(colon + 2..).unwrap_or(&[])));
            }
            _ => return None,
        }
        at += word;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_lines_are_put_together_again() {
        for (line, text) in [
            ("11-02 10:00:00.123     0     0 W BUG     : a b", "kernel: BUG: a b"),
            ("11-02 10:00:00.123     0     0 W         :  f+0x1/0x2", "kernel:  f+0x1/0x2"),
            ("11-02 10:00:00.123  root     0     0 W BUG     : a", "kernel: BUG: a"),
            ("2020-11-02 10:00:00.123     0     0 E         : a", "kernel: a"),
            ("W/BUG     (    0): a", "kernel: BUG: a"),
        ] {
            assert_eq!(kernel_line(line.as_bytes()), Some(text.as_bytes().to_vec()), "{line}");
        }
        for line in [
            "11-02 10:00:00.123  1234  1250 W BUG     : a b",
            "W/BUG     ( 1234): a",
            "11-02 10:00:00.123 x",
            "a/b (0): x",
            "11-02 10:00:00.123     0     0",
            "2020-11-0",
        ] {
            assert_eq!(kernel_line(line.as_bytes()), None, "{line}");
        }
    }
}
