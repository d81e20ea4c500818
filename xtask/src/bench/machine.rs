//! What was measured on: processor, memory, system, compiler and revision. No name of the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// Instruction sets that kernels are chosen by.
const FLAGS: [&str; 12] = [
    "avx2",
    "fma",
    "avx512f",
    "avx512dq",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "asimd",
    "sve",
];

/// A description of this machine; parts that the system does not tell are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Machine {
    /// The name of the processor.
    pub(super) cpu: String,
    /// Family, model and stepping, which tell processors of one name apart.
    pub(super) cpu_signature: String,
    /// The instruction sets of [`FLAGS`] that it has.
    pub(super) cpu_flags: Vec<String>,
    /// Cores that this process may use.
    pub(super) cores: usize,
    /// Level, kind and size of each cache of the first core.
    pub(super) caches: Vec<String>,
    /// Memory in bytes.
    pub(super) memory_bytes: u64,
    /// Name and version of the system.
    pub(super) system: String,
    /// The kernel's version.
    pub(super) kernel: String,
    /// The compiler's version.
    pub(super) rustc: String,
}

impl Machine {
    pub(super) fn describe() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpu, cpu_signature, cpu_flags) = processor(&text("/proc/cpuinfo"));
        Self {
            cpu: if cpu.is_empty() { std::env::consts::ARCH.to_owned() } else { cpu },
            cpu_signature,
            cpu_flags,
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            memory_bytes: kib(&text("/proc/meminfo"), "MemTotal:").unwrap_or_default(),
            system: value(&text("/etc/os-release"), "PRETTY_NAME=").trim_matches('"').to_owned(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            rustc: output(Command::new("rustc").arg("--version")),
        }
    }
}

/// Name, signature and known flags of the first processor of `/proc/cpuinfo`.
pub(super) fn processor(cpuinfo: &str) -> (String, String, Vec<String>) {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        let mut lines = first.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim())
    };
    let signature = ["cpu family", "model", "stepping"].map(field);
    let signature = if signature[0].is_empty() { String::new() } else { signature.join("/") };
    let all: Vec<&str> = field("flags").split_whitespace().chain(field("Features").split_whitespace()).collect();
    let known = FLAGS.into_iter().filter(|flag| all.contains(flag)).map(str::to_owned).collect();
    (field("model name").to_owned(), signature, known)
}

/// A number of KiB behind `key`, in bytes.
pub(super) fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn value(text: &str, key: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned()
}

fn caches(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for index in 0..8 {
        let part = |name: &str| fs::read_to_string(folder.join(format!("index{index}/{name}")));
        if let (Ok(level), Ok(kind), Ok(size)) = (part("level"), part("type"), part("size")) {
            found.push(format!("L{} {} {}", level.trim(), kind.trim(), size.trim()));
        }
    }
    found
}

/// What a command prints, empty if it cannot.
pub(super) fn output(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
