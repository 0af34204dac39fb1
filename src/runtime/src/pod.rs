//! Paths that belong to a pod rather than to one of its containers.

use std::path::{Path, PathBuf};

/// The directory of an emptyDir on the node, whatever its medium.
pub fn empty_dir(kubelet_root: &Path, pod_uid: &str, volume: &str) -> PathBuf {
    kubelet_root.join("pods").join(pod_uid).join("volumes/kubernetes.io~empty-dir").join(volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_dirs_are_where_kubelet_puts_them() {
        assert_eq!(
            empty_dir(Path::new("/var/lib/kubelet"), "u1", "data"),
            Path::new("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/data")
        );
    }
}
