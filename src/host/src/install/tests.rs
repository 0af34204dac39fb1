use std::os::unix::fs::PermissionsExt;

use super::*;

const MAIN: &str = "version = 3\n# mine\n";
const LIST: &str = "{\"name\":\"ts\",\n \"plugins\":[{\"type\":\"bridge\"}]}\n";

struct Node {
    _dir: tempfile::TempDir,
    plan: Plan,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan {
        host: HostRoot::at(dir.path().join("host")),
        payload: dir.path().join("payload"),
        containerd_config: "/etc/containerd/config.toml".into(),
        containerd_major: 2,
        cni_conf_dir: "/etc/cni/net.d".into(),
        cni_bin_dir: "/opt/cni/bin".into(),
    };
    for (path, content) in [
        ("payload/bin/transship-runc", "wrapper 1"),
        ("payload/bin/transship-cni", "cni 1"),
        ("payload/bin/noop", "noop"),
        ("payload/lib/libc.so.6", "libc"),
        ("host/usr/sbin/runc", "runc"),
        ("host/etc/containerd/config.toml", MAIN),
        ("host/etc/cni/net.d/10-ts.conflist", LIST),
        ("host/etc/cni/net.d/20-other.conflist", LIST),
    ] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Node { _dir: dir, plan }
}

impl Node {
    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.plan.host.join(path)).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        self.plan.host.join(path).exists()
    }
}

#[test]
fn installing_puts_everything_in_place_once() {
    let node = node();
    assert!(!is_installed(&node.plan).unwrap());
    let report = install(&node.plan).unwrap();
    assert!(report.restart_containerd);
    assert_eq!(report.cni_conflist.as_deref(), Some(Path::new("/etc/cni/net.d/10-ts.conflist")));
    assert!(report.changed.contains(&"/opt/transship/bin/transship-runc".into()), "{report:?}");
    assert!(node.text("/etc/cni/net.d/10-ts.conflist").contains("transship-cni"));
    assert_eq!(node.text("/etc/cni/net.d/20-other.conflist"), LIST);
    assert_eq!(node.text("/opt/cni/bin/transship-cni"), "cni 1");
    let hold = node.plan.host.bin("transship-hold");
    assert_eq!(fs::read_to_string(hold).unwrap(), "wrapper 1");
    let mode = fs::metadata(node.plan.host.bin("noop")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755, "containers of any user run it");
    let dir = fs::metadata(node.plan.host.opt()).unwrap().permissions().mode();
    assert_eq!(dir & 0o755, 0o755);

    assert!(!is_installed(&node.plan).unwrap(), "containerd was not restarted yet");
    assert!(install(&node.plan).unwrap().restart_containerd, "a restart is not forgotten");
    restarted(&node.plan).unwrap();
    assert!(is_installed(&node.plan).unwrap());
    let again = install(&node.plan).unwrap();
    assert_eq!((again.restart_containerd, again.changed.len()), (false, 0), "{again:?}");
}

#[test]
fn upgrading_changes_programs_without_a_restart() {
    let node = node();
    install(&node.plan).unwrap();
    restarted(&node.plan).unwrap();
    fs::write(node.plan.payload.join("bin/transship-runc"), "wrapper 2").unwrap();
    fs::remove_file(node.plan.payload.join("lib/libc.so.6")).unwrap();
    let report = install(&node.plan).unwrap();
    assert!(!report.restart_containerd);
    assert_eq!(node.text("/opt/transship/bin/transship-runc"), "wrapper 2");
    assert!(!node.has("/opt/transship/lib/libc.so.6"));
}

#[test]
fn removing_leaves_the_node_as_it_was() {
    let node = node();
    install(&node.plan).unwrap();
    restarted(&node.plan).unwrap();
    let report = remove_configuration(&node.plan).unwrap();
    assert!(report.restart_containerd);
    assert_eq!(node.text("/etc/containerd/config.toml"), MAIN);
    assert_eq!(node.text("/etc/cni/net.d/10-ts.conflist"), LIST);
    assert!(!node.has("/etc/containerd/conf.d"));
    assert!(!node.has("/opt/cni/bin/transship-cni"));

    link_wrapper_to_runc(&node.plan).unwrap();
    link_wrapper_to_runc(&node.plan).unwrap();
    let wrapper = node.plan.host.bin("transship-runc");
    assert_eq!(fs::read_link(&wrapper).unwrap(), Path::new("/usr/sbin/runc"));

    restarted(&node.plan).unwrap();
    let again = remove_configuration(&node.plan).unwrap();
    assert_eq!((again.restart_containerd, again.changed.len()), (false, 0), "{again:?}");
}

#[test]
fn installing_again_replaces_the_link_by_the_wrapper() {
    let node = node();
    install(&node.plan).unwrap();
    remove_configuration(&node.plan).unwrap();
    link_wrapper_to_runc(&node.plan).unwrap();
    install(&node.plan).unwrap();
    assert_eq!(node.text("/opt/transship/bin/transship-runc"), "wrapper 1");
    assert!(!node.plan.host.bin("transship-runc").is_symlink());
}

#[test]
fn a_runtime_that_the_user_had_named_is_remembered() {
    let node = node();
    let main = "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\nBinaryName = \"/usr/local/bin/runc-1.4\"\n";
    fs::write(node.plan.host.join("/etc/containerd/config.toml"), main).unwrap();
    install(&node.plan).unwrap();
    assert_eq!(node.text("/opt/transship/runc.path"), "/usr/local/bin/runc-1.4");
    link_wrapper_to_runc(&node.plan).unwrap();
    let link = fs::read_link(node.plan.host.bin("transship-runc")).unwrap();
    assert_eq!(link, Path::new("/usr/local/bin/runc-1.4"));
}

#[test]
fn a_node_without_cni_configuration_is_installed_later() {
    let node = node();
    fs::remove_dir_all(node.plan.host.join("/etc/cni/net.d")).unwrap();
    assert_eq!(install(&node.plan).unwrap().cni_conflist, None);
    restarted(&node.plan).unwrap();
    assert!(!is_installed(&node.plan).unwrap());
    let list = node.plan.host.join("/etc/cni/net.d/10-new.conflist");
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    fs::write(list, LIST).unwrap();
    assert!(install(&node.plan).unwrap().cni_conflist.is_some());
    assert!(is_installed(&node.plan).unwrap());
}

#[test]
fn a_single_plugin_that_comes_first_is_refused_in_words() {
    let node = node();
    fs::write(node.plan.host.join("/etc/cni/net.d/05-old.conf"), "{\"type\":\"bridge\"}").unwrap();
    let error = install(&node.plan).unwrap_err().to_string();
    assert!(error.contains("05-old.conf") && error.contains(".conflist"), "{error}");
}
