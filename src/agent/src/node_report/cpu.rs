//! The CPU, as far as restored programs may depend on it: from `/proc/cpuinfo`.

use transship_api::node::Cpu;

/// The most features a status holds.
const MAX_FEATURES: usize = 512;

/// Reads `/proc/cpuinfo`. A feature counts only if every processor has it: a restored process may
/// run on any of them.
pub fn parse(cpuinfo: &str) -> Cpu {
    let mut cpu = Cpu::default();
    let mut common: Option<Vec<&str>> = None;
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key.trim() {
            "vendor_id" | "CPU implementer" if cpu.vendor.is_empty() => {
                cpu.vendor = shorten(value, 64);
            }
            "model name" | "CPU part" if cpu.model.is_empty() => cpu.model = shorten(value, 128),
            "flags" | "Features" => {
                let mut features: Vec<&str> =
                    value.split_ascii_whitespace().filter(|feature| feature.len() <= 64).collect();
                features.sort_unstable();
                features.dedup();
                common = Some(match common {
                    None => features,
                    Some(mut all) => {
                        all.retain(|feature| features.binary_search(feature).is_ok());
                        all
                    }
                });
            }
            _ => {}
        }
    }
    let features = common.unwrap_or_default().into_iter().take(MAX_FEATURES);
    cpu.features = features.map(str::to_owned).collect();
    cpu
}

fn shorten(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

/// The architecture as Kubernetes names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_features_of_all_processors_count() {
        let cpu = parse(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: sse2 avx fpu avx\n\n\
             processor\t: 1\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2\n",
        );
        assert_eq!(cpu.vendor, "AuthenticAMD");
        assert_eq!(cpu.model, "AMD EPYC");
        assert_eq!(cpu.features, ["fpu", "sse2"]);
        assert_eq!(parse(""), Cpu::default());
    }
}
