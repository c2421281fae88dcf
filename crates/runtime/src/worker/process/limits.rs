//! Resource limits of a job's process, and measurements of its usage.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// With less memory, a process cannot even start its job.
pub(in super::super) const MIN_MEMORY_BYTES: u64 = 16 << 20;
/// Other processes have 0. If memory runs out, the kernel kills the job instead of its worker, the
/// database or other processes.
const OOM_SCORE: &str = "500";

/// Limits the resources of this process. The memory limit applies to private writable memory:
/// mapped weights and address space that is only reserved (as CUDA does) do not count. Core files
/// are disabled, because they would be as large as the memory of the job.
///
/// # Errors
/// The system rejects a limit.
pub(super) fn confine(memory_max_bytes: Option<u64>) -> io::Result<()> {
    let set = |resource, bytes: u64| {
        // Only root may exceed the previous hard limit.
        let maximum = getrlimit(resource).maximum.map_or(bytes, |maximum| maximum.min(bytes));
        setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })
    };
    set(Resource::Core, 0)?;
    if let Some(bytes) = memory_max_bytes {
        set(Resource::Data, bytes)?;
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::debug!(%error, "the kernel may kill another process instead of the job's when memory runs out");
    }
    Ok(())
}

/// Ends this process when the thread that started it ends. Not every system supports this; the
/// other signal is that standard input is closed.
pub(super) fn end_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        tracing::debug!(%error, "this process cannot be notified when its parent ends");
    }
}

/// Returns the peak resident memory of process `pid`, in bytes.
pub(super) fn peak_memory(pid: u32) -> Option<u64> {
    field_kib(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmHWM:")
}

/// Returns the number of processes that the kernel has killed since boot because it was out of
/// memory.
pub(super) fn out_of_memory_kills() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/vmstat").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Returns the disk usage of the files below `dir`, in bytes. Files that disappear meanwhile count
/// as 0.
pub(super) fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes_of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(bytes_of).sum()
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_system_says_what_there_is() {
        assert_eq!(field_kib("VmPeak:\t 99 kB\nVmHWM:\t      12 kB\n", "VmHWM:"), Some(12 * 1024));
        assert_eq!(field_kib("VmHWM: lots\n", "VmHWM:"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory(std::process::id()).unwrap() > 1 << 20);
            assert_eq!(peak_memory(u32::MAX), None);
        }
    }

    #[test]
    fn files_count_where_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(disk_bytes(dir.path()), 0);
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/c"), vec![1; 100_000]).unwrap();
        std::fs::write(dir.path().join("d"), vec![1; 50_000]).unwrap();
        let bytes = disk_bytes(dir.path());
        assert!((150_000..200_000).contains(&bytes), "{bytes}");
        assert_eq!(disk_bytes(&dir.path().join("none")), 0);
    }
}
