//! What each mount of a container is, by its place on the node.

use std::path::Path;

use transship_core::facts::{MountFacts, MountOrigin, REMOVED_ROOT};
use transship_runtime::mounts::Mount;

use super::projected::is_dated;

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

/// Where files are mounted that are written anew, with other content, for the pod that is made on the
/// target: by subPath out of a volume of the downward API or a projected one, or out of any ConfigMap or
/// Secret that has changed since. Those that have not come with the same content; so do some projected ones,
/// but what is in them is not known here.
pub fn remade(container: &[Mount], node: Node<'_>) -> Vec<String> {
    const OWN: [&str; 2] = ["kubernetes.io~downward-api", "kubernetes.io~projected"];
    let is_remade = |mount: &&Mount| {
        let Some(below) = below_pod_dir(mount, node) else { return false };
        let root = mount.root.to_string_lossy();
        // kubelet has followed its own links to the directory that it calls by the time.
        let by_sub_path = root.split('/').any(is_dated);
        let has_changed = root.ends_with(REMOVED_ROOT);
        let is_own = below.split('/').nth(1).is_some_and(|plugin| OWN.contains(&plugin));
        let is_projected = in_pod_dir(&below).0 == MountOrigin::Projected;
        is_projected && by_sub_path && (has_changed || is_own)
    };
    container.iter().filter(is_remade).map(|mount| mount.point.display().to_string()).collect()
}

/// The place of a mount below the pod's directory on the node, if it is there. A volume that is a part of a
/// larger file system shows its directory as the mount's root; one that is a file system of its own is mounted
/// on the node, too: the volume first, and parts of it by subPath.
fn below_pod_dir(mount: &Mount, node: Node<'_>) -> Option<String> {
    let uid = node.pod_dir.file_name().unwrap_or_default().to_string_lossy();
    if let Some(below) = after(&mount.root.to_string_lossy(), &format!("/pods/{uid}/")) {
        return Some(below.to_owned());
    }
    let on_node = node.mounts.iter().filter(|other| other.device == mount.device);
    let mut places = on_node.filter_map(|other| other.point.strip_prefix(node.pod_dir).ok());
    places.next().map(|below| below.to_string_lossy().into_owned())
}

fn origin(mount: &Mount, node: Node<'_>) -> (MountOrigin, String) {
    let none = String::new;
    let kernel = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"];
    if kernel.contains(&mount.fs_type.as_str()) {
        return (MountOrigin::Runtime, none());
    }
    if let Some(below) = below_pod_dir(mount, node) {
        return in_pod_dir(&below);
    }
    let mut on_node = node.mounts.iter().filter(|other| other.device == mount.device).peekable();
    let is_on_node = on_node.peek().is_some();
    let sandbox = format!("sandboxes/{}/", node.sandbox_id);
    if on_node.any(|other| after(&other.point.to_string_lossy(), &sandbox) == Some("shm")) {
        return (MountOrigin::SandboxShm, none());
    }
    let root = mount.root.to_string_lossy();
    if after(&root, &sandbox).is_some() {
        return (MountOrigin::PodFile, none());
    }
    let under = |dir: &str| mount.point.starts_with(dir);
    if under("/proc") || under("/sys") || under("/dev") {
        return (MountOrigin::Runtime, none());
    }
    if is_on_node {
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

    #[test]
    fn parts_of_volumes_that_are_written_anew_are_known() {
        let host = parse(&format!(
            "{HOST}6 1 0:44 / /var/lib/kubelet/pods/u1/volumes/kubernetes.io~downward-api/info rw - tmpfs tmpfs rw
7 1 0:44 /..2026_11_25.1/labels /var/lib/kubelet/pods/u1/volume-subpaths/info/web/0 rw - tmpfs tmpfs rw
8 1 0:45 / /var/lib/kubelet/pods/u1/volumes/kubernetes.io~secret/key rw - tmpfs tmpfs rw
"
        ));
        let node = Node {
            mounts: &host,
            pod_dir: Path::new("/var/lib/kubelet/pods/u1"),
            sandbox_id: "s1",
        };
        let volumes = "/var/lib/kubelet/pods/u1/volumes";
        let container = parse(&format!(
            "\
90 1 0:60 / / rw - overlay overlay rw
91 90 0:44 /..2026_11_25.1/labels /labels ro - tmpfs tmpfs rw
92 90 0:44 / /info ro - tmpfs tmpfs rw
93 90 0:40 /..2026_11_25.2/part /token ro - tmpfs tmpfs rw
94 90 0:45 /..2026_11_25.3/key /key ro - tmpfs tmpfs rw
95 90 0:45 /..2026_11_25.4/key//deleted /old-key ro - tmpfs tmpfs rw
96 90 8:1 {volumes}/kubernetes.io~configmap/c/..2026_11_25.5/c /config ro - ext4 /dev/root rw
97 90 8:1 {volumes}/kubernetes.io~configmap/c/..2026_11_24.5/c//deleted /old-config ro - ext4 /dev/root rw
98 90 8:1 {volumes}/kubernetes.io~empty-dir/cache/..2026_11_25.6 /cache rw - ext4 /dev/root rw
"
        ));
        let found = remade(&container, node);
        assert_eq!(found, ["/labels", "/token", "/old-key", "/old-config"]);
        let origins = classify(&container, node);
        let is_projected =
            |m: &&transship_core::facts::MountFacts| m.origin == MountOrigin::Projected;
        assert_eq!(origins.iter().filter(is_projected).count(), 7);
    }
}
