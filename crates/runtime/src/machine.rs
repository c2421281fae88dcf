//! The memory of the machine that this process may use.

use std::fs;
use std::path::Path;

/// Returns the usable memory in bytes: the machine's memory, or the limit of the control group (of
/// a container) if that is lower. Returns `u64::MAX` if neither is known.
pub fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    [machine, control_group_memory()].into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Returns the smallest limit between this process's control group and the root, for cgroup v1 and
/// v2.
fn control_group_memory() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let limit_of = |dir: &Path| -> Option<u64> {
            let below = dir.strip_prefix("/").ok()?;
            fs::read_to_string(Path::new(root).join(below).join(file)).ok()?.trim().parse().ok()
        };
        Path::new(path).ancestors().filter_map(limit_of).min()
    });
    limits.min()
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says() {
        assert_eq!(total_of("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total_of("nothing"), None);
        assert!(memory_bytes() > 1 << 20);
    }
}
