use std::time::Instant;
use transship_core::placement::*;
fn main() {
    let mut nodes = Vec::new();
    let t = Instant::now();
    for n in 0..5000 {
        let mut node =
            Node::new(format!("node-{n:04}"), format!("7d9e1c1e-0000-4000-8000-{n:012}"));
        node.total_cpus = 64000;
        node.total_memory = 256 << 30;
        node.health = 100;
        let mut labels: Vec<(String, String)> =
            (0..20).map(|i| (format!("example.com/label-{i}"), format!("value-{i}"))).collect();
        labels.push(("region".into(), ["us-east", "us-west", "eu"][n % 3].into()));
        node.set_labels(labels);
        let images: Vec<Image> = (0..30)
            .map(|i| Image {
                id: format!("sha256:{i:064}"),
                tags: vec![format!("docker.io/library/image{i}:1"), format!("image{i}:1")],
            })
            .collect();
        node.set_images(&images);
        for p in 0..20 {
            let i = n * 20 + p;
            let name = format!("web-{}-7f9c6d5b4-{i:05}", i % 500);
            node.add(Container {
                id: format!("3f0e1c1e-1111-4111-8111-{i:012}"),
                aliases: vec![format!("shop/{name}"), format!("{i:064x}")],
                name,
                labels: [
                    ("app".into(), format!("web-{}", i % 500)),
                    ("pod-template-hash".into(), format!("7f9c6d5b4{}", i % 500)),
                    ("tier".into(), "front".into()),
                ]
                .into(),
                images: vec![format!("image{}:1", i % 30)],
                cpus: 100 + (i as i64 * 7919 % 2000),
                memory: 64 << 20,
                ..Container::default()
            });
        }
        nodes.push(node);
    }
    println!(
        "built in {:?}; rss {}",
        t.elapsed(),
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .find(|l| l.starts_with("VmRSS"))
            .unwrap()
    );
    let refs: Vec<&Node> = nodes.iter().collect();
    let base = Request { cpus: 500, memory: 128 << 20, ..Request::default() };
    let v = |s: &[&str]| s.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let cases = [
        ("plain", base.clone()),
        ("constraint literal", Request { constraints: v(&["region==eu"]), ..base.clone() }),
        (
            "constraint glob+regex+soft",
            Request {
                constraints: v(&["region==us*", "region!=/east$/", "disk==~ssd"]),
                ..base.clone()
            },
        ),
        ("affinity label literal", Request { affinities: v(&["app!=web-7"]), ..base.clone() }),
        (
            "affinity label regex",
            Request { affinities: v(&["app!=/^web-7[0-9]$/"]), ..base.clone() },
        ),
        (
            "affinity container literal",
            Request { affinities: v(&["container!=web-7"]), ..base.clone() },
        ),
        (
            "affinity container glob",
            Request { affinities: v(&["container!=web-7-*"]), ..base.clone() },
        ),
        (
            "affinity container regex",
            Request { affinities: v(&["container!=/^web-7[0-9]-/"]), ..base.clone() },
        ),
        ("affinity image", Request { affinities: v(&["image==image7"]), ..base.clone() }),
        ("link", Request { links: v(&["shop/web-7-7f9c6d5b4-00007"]), ..base.clone() }),
        (
            "port",
            Request {
                ports: vec![PortBinding { host_ip: "".into(), host_port: "80".into() }],
                ..base.clone()
            },
        ),
    ];
    for (what, request) in &cases {
        let mut times: Vec<_> = (0..60)
            .map(|_| {
                let t = Instant::now();
                let d = prepare(request, &Options::default()).place(&refs);
                std::hint::black_box(d.best());
                t.elapsed()
            })
            .collect();
        times.sort();
        println!("{what:28} p50 {:?} max {:?}", times[30], times[59]);
    }
    let t = Instant::now();
    for i in 0..10000 {
        let n = &mut nodes[i % 5000];
        n.add(Container { id: "x".into(), name: "x".into(), ..Container::default() });
        n.remove("x");
    }
    println!("add+remove {:?}", t.elapsed() / 10000);
    let t = Instant::now();
    for n in &mut nodes {
        n.add(Container { id: "x".into(), name: "x".into(), ..Container::default() });
    }
    println!("add {:?}", t.elapsed() / 5000);
}
