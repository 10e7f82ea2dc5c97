//! What the virtual CPUs are doing, read from QEMU's human monitor. Pure.

/// One look at one virtual CPU.
///
/// Under emulation the place is that of the block of code entered last by an indirect way, which can be some steps back; the flags
/// are those of the moment (compared on QEMU 10.0 with CPUs that spin in known places).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLook {
    /// Its number, from 0.
    pub cpu: u32,
    /// Where it is: the instruction pointer.
    pub rip: u64,
    /// It takes interrupts.
    pub interrupts: bool,
    /// Its privilege level: 0 in the kernel, 3 in user space.
    pub ring: u8,
    /// It sleeps until an interrupt comes.
    pub halted: bool,
}

/// The interrupt flag in RFLAGS.
const IF: u64 = 1 << 9;

/// Read the answer to `info registers -a`. CPUs of which something is missing are left out.
pub fn parse_registers(text: &str) -> Vec<CpuLook> {
    let mut looks = Vec::new();
    let mut cpu = None;
    for line in text.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#") {
            cpu = number.parse().ok();
        } else if let (Some(number), true) = (cpu, line.starts_with("RIP="))
            && let Some(look) = look(number, line)
        {
            looks.push(look);
            cpu = None;
        }
    }
    looks
}

/// `RIP=ffffffffa44c1da3 RFL=00000286 [--S--P-] CPL=0 II=0 A20=1 SMM=0 HLT=0`
fn look(cpu: u32, line: &str) -> Option<CpuLook> {
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name))
            .map(|value| value.trim_start_matches('='))
    };
    let hex = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    Some(CpuLook {
        cpu,
        rip: hex("RIP")?,
        interrupts: hex("RFL")? & IF != 0,
        ring: field("CPL")?.parse().ok()?,
        halted: field("HLT")? == "1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a real answer (QEMU 10.0, Debian 12); the many between them are not looked at.
    const TWO: &str = "\r\nCPU#0\r\nRAX=ff3a90e4826ef000 RBX=0000000000000150\r\n\
        RIP=ffffffffa44c1da3 RFL=00000286 [--S--P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n\
        CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n\
        CPU#1\r\nRIP=ffffffffa5217a0b RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n";

    #[test]
    fn a_real_answer_is_read() {
        let looks = parse_registers(TWO);
        assert_eq!(
            looks,
            [
                CpuLook { cpu: 0, rip: 0xffff_ffff_a44c_1da3, interrupts: true, ring: 0, halted: false },
                CpuLook { cpu: 1, rip: 0xffff_ffff_a521_7a0b, interrupts: true, ring: 0, halted: true },
            ]
        );
        let stuck = "CPU#3\nRIP=ffffffffa966ab00 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n";
        assert_eq!(
            parse_registers(stuck),
            [CpuLook { cpu: 3, rip: 0xffff_ffff_a966_ab00, interrupts: false, ring: 0, halted: false }]
        );
        let user = "CPU#0\nRIP=00007f0000001000 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\n";
        assert_eq!(parse_registers(user)[0].ring, 3);
    }

    #[test]
    fn what_is_no_answer_has_no_cpus() {
        for text in [
            "",
            "unknown command: 'info registers'",
            "CPU#0\nRIP=zz RFL=0 CPL=0 HLT=0",
            "CPU#x\nRIP=0 RFL=0 CPL=0 HLT=0",
        ] {
            assert_eq!(parse_registers(text), [], "{text}");
        }
        // Before a CPU in 64-bit mode there is one that starts: it has EIP and is left out.
        assert_eq!(
            parse_registers("CPU#0\nEIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\n"),
            []
        );
    }
}
