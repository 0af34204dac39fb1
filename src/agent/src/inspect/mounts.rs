//! What each mount of a container is, by its place on the node.

use std::path::Path;

use transship_core::facts::{MountFacts, MountOrigin};
use transship_runtime::mounts::Mount;

/// What is needed to recognise the mounts of a container.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// All mounts of the host.
    pub mounts: &'a [Mount],
    /// `/var/lib/kubelet/pods/<uid>`.
    pub pod_dir: &'a Path,
    /// The CRI plugin's directories of this sandbox end so: `sandboxes/<id>`.
    pub sandbox_id: &'a str,
}

/// The mounts of a container, the root left out.
pub fn classify(container: &[Mount], node: Node<'_>) -> Vec<MountFacts> {
    container
        .iter()
        .filter(|mount| mount.point != Path::new("/"))
        .map(|mount| {
            let (origin, volume) = origin(mount, node);
            let read_only = |options: &str| options.split(',').any(|option| option == "ro");
            MountFacts {
                path: mount.point.display().to_string(),
                fs_type: mount.fs_type.clone(),
                root: mount.root.display().to_string(),
                writable: !read_only(&mount.options) && !read_only(&mount.super_options),
                origin,
                volume,
            }
        })
        .collect()
}

fn origin(mount: &Mount, node: Node<'_>) -> (MountOrigin, String) {
    let none = String::new;
    let kernel = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"];
    if kernel.contains(&mount.fs_type.as_str()) {
        return (MountOrigin::Runtime, none());
    }
    // A volume that is a part of a larger file system shows its directory as the mount's root; one
    // that is a file system of its own is mounted on the node, too, below the pod's directory.
    let uid = node.pod_dir.file_name().unwrap_or_default().to_string_lossy();
    if let Some(below) = after(&mount.root.to_string_lossy(), &format!("/pods/{uid}/")) {
        return in_pod_dir(below);
    }
    let on_node = node.mounts.iter().filter(|other| other.device == mount.device);
    for other in on_node.clone() {
        if let Ok(below) = other.point.strip_prefix(node.pod_dir) {
            return in_pod_dir(&below.to_string_lossy());
        }
        let sandbox = format!("sandboxes/{}/", node.sandbox_id);
        if after(&other.point.to_string_lossy(), &sandbox) == Some("shm") {
            return (MountOrigin::SandboxShm, none());
        }
    }
    let root = mount.root.to_string_lossy();
    if after(&root, &format!("sandboxes/{}/", node.sandbox_id)).is_some() {
        return (MountOrigin::PodFile, none());
    }
    let under = |dir: &str| mount.point.starts_with(dir);
    if under("/proc") || under("/sys") || under("/dev") {
        return (MountOrigin::Runtime, none());
    }
    if on_node.count() > 0 {
        return (MountOrigin::HostPath, none());
    }
    (MountOrigin::Application, none())
}

/// `below` is relative to the pod's directory: `volumes/kubernetes.io~empty-dir/cache/…`.
fn in_pod_dir(below: &str) -> (MountOrigin, String) {
    let mut parts = below.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("volumes"), Some(plugin), Some(name)) => {
            let origin = match plugin {
                "kubernetes.io~empty-dir" => MountOrigin::EmptyDir,
                "kubernetes.io~configmap"
                | "kubernetes.io~secret"
                | "kubernetes.io~projected"
                | "kubernetes.io~downward-api" => MountOrigin::Projected,
                _ => MountOrigin::Persistent,
            };
            (origin, name.to_owned())
        }
        // Sub-paths are mounted through a directory of their own, by volume and container; which
        // kind of volume it is does not show there.
        (Some("volume-subpaths"), Some(volume), _) => (MountOrigin::Persistent, volume.to_owned()),
        _ => (MountOrigin::PodFile, String::new()),
    }
}

/// What follows `marker` in `text`.
fn after<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    text.find(marker).map(|at| &text[at + marker.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use transship_runtime::mounts::parse;

    const HOST: &str = "\
1 0 8:1 / / rw - ext4 /dev/root rw
2 1 0:40 / /var/lib/kubelet/pods/u1/volumes/kubernetes.io~projected/token rw - tmpfs tmpfs rw
3 1 0:41 / /var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/mem rw - tmpfs tmpfs rw
4 1 0:42 / /var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount rw - ext4 /dev/x rw
5 1 0:43 / /run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/shm rw - tmpfs shm rw
";

    const CONTAINER: &str = "\
90 1 0:60 / / rw - overlay overlay rw
91 90 0:61 / /proc rw - proc proc rw
92 90 0:62 / /dev rw,nosuid - tmpfs tmpfs rw
93 92 0:43 / /dev/shm rw - tmpfs shm rw
94 90 8:1 /var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/cache /cache rw - ext4 /dev/root rw
95 90 0:41 / /mem rw - tmpfs tmpfs rw
96 90 0:40 / /var/run/secrets/token ro - tmpfs tmpfs rw
97 90 0:42 / /data rw - ext4 /dev/x rw
98 90 8:1 /var/lib/kubelet/pods/u1/etc-hosts /etc/hosts rw - ext4 /dev/root rw
99 90 8:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/resolv.conf /etc/resolv.conf rw - ext4 /dev/root rw
100 90 8:1 /srv /srv ro - ext4 /dev/root rw
101 90 0:70 / /made rw - tmpfs tmpfs rw
102 91 0:71 / /proc/acpi ro - tmpfs tmpfs ro
103 90 0:72 / /mnt rw - nfs4 server:/x rw
";

    #[test]
    fn each_mount_is_known_by_its_place_on_the_node() {
        let host = parse(HOST);
        let node = Node {
            mounts: &host,
            pod_dir: Path::new("/var/lib/kubelet/pods/u1"),
            sandbox_id: "s1",
        };
        let found = classify(&parse(CONTAINER), node);
        let of = |path: &str| {
            let mount = found.iter().find(|m| m.path == path).unwrap();
            (mount.origin, mount.volume.as_str(), mount.writable)
        };
        use MountOrigin as O;
        for (path, wanted) in [
            ("/proc", (O::Runtime, "", true)),
            ("/dev", (O::Runtime, "", true)),
            ("/dev/shm", (O::SandboxShm, "", true)),
            ("/cache", (O::EmptyDir, "cache", true)),
            ("/mem", (O::EmptyDir, "mem", true)),
            ("/var/run/secrets/token", (O::Projected, "token", false)),
            ("/data", (O::Persistent, "pvc-1", true)),
            ("/etc/hosts", (O::PodFile, "", true)),
            ("/etc/resolv.conf", (O::PodFile, "", true)),
            ("/srv", (O::HostPath, "", false)),
            ("/made", (O::Application, "", true)),
            ("/proc/acpi", (O::Runtime, "", false)),
            ("/mnt", (O::Application, "", true)),
        ] {
            assert_eq!(of(path), wanted, "{path}");
        }
        assert_eq!(found.len(), 13, "the root is left out");
    }
}
