//! Stores of keys and values: redis, memcached, etcd.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Pod;

use crate::{
    client::Client,
    frame::{Application, Session, Setting, nothing},
    wire::{Http, Wire},
};

/// redis, in memory only; its client is redis-cli.
pub fn redis() -> Application {
    Application {
        name: "redis",
        script: r#"exec redis-server --save "" --appendonly no --protected-mode no"#,
        port: Some(6379),
        files: &[],
        container: Value::Null,
        pod: Value::Null,
        setting: None,
        sessions: 3,
        prepare: nothing,
        open: |world, pod, client| {
            Ok(Box::new(Redis { cli: Client::start(world, &redis_cli(pod))?, client }))
        },
        verify: |world, pod, written| {
            let mut cli = Client::start(world, &redis_cli(pod))?;
            for (client, n) in written.iter().enumerate() {
                let length = cli.ask(&format!("LLEN list:{client}"))?;
                ensure!(length == n.to_string(), "list {client} has {length} of {n} values");
                let last = cli.ask(&format!("LINDEX list:{client} -1"))?;
                ensure!(last == n.to_string(), "the last value of list {client} is {last}");
            }
            Ok(())
        },
    }
}

fn redis_cli(pod: &Pod) -> [&str; 3] {
    ["redis-cli", "-h", &pod.ip]
}

struct Redis {
    cli: Client,
    client: usize,
}

impl Session for Redis {
    fn write(&mut self, n: u64) -> Result<()> {
        let length = self.cli.ask(&format!("RPUSH list:{} {n}", self.client))?;
        ensure!(length == n.to_string(), "the list has {length} values");
        Ok(())
    }
}

/// memcached with four threads.
pub fn memcached() -> Application {
    Application {
        name: "memcached",
        script: "exec memcached -l 0.0.0.0 -t 4 -m 64",
        port: Some(11211),
        files: &[],
        container: Value::Null,
        pod: Value::Null,
        setting: None,
        sessions: 8,
        prepare: nothing,
        open: |_, pod, client| {
            let mut wire = Wire::connect(pod, 11211)?;
            let stored = wire.ask(&format!("set counter:{client} 0 0 1\r\n0"))?;
            ensure!(stored == "STORED", "{stored}");
            Ok(Box::new(Memcached { wire, client }))
        },
        verify: |_, pod, written| {
            let mut wire = Wire::connect(pod, 11211)?;
            for (client, n) in written.iter().enumerate() {
                let counter = wire.ask(&format!("incr counter:{client} 0"))?;
                ensure!(counter == n.to_string(), "counter {client} is {counter}, not {n}");
                wire.send(format!("get value:{client}\r\n"))?;
                let (head, value) = (wire.line()?, wire.line()?);
                ensure!(head.starts_with("VALUE") && value == value_of(*n), "{head}: {value}");
                wire.line()?;
            }
            Ok(())
        },
    }
}

struct Memcached {
    wire: Wire,
    client: usize,
}

fn value_of(n: u64) -> String {
    n.to_string().repeat(50)
}

impl Session for Memcached {
    fn write(&mut self, n: u64) -> Result<()> {
        let counter = self.wire.ask(&format!("incr counter:{} 1", self.client))?;
        ensure!(counter == n.to_string(), "the counter is {counter}");
        let value = value_of(n);
        let set = format!("set value:{} 0 0 {}\r\n{value}", self.client, value.len());
        let stored = self.wire.ask(&set)?;
        ensure!(stored == "STORED", "{stored}");
        Ok(())
    }
}

/// etcd: file locks, a write-ahead log on an emptyDir, and a Go listener without MPTCP.
pub fn etcd() -> Application {
    Application {
        name: "etcd",
        script: "exec etcd --data-dir /data/etcd --listen-client-urls http://0.0.0.0:2379 \
                 --advertise-client-urls http://127.0.0.1:2379 --log-level warn",
        port: Some(2379),
        files: &[],
        container: json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]}),
        pod: json!({"volumes": [{"name": "data", "emptyDir": {}}]}),
        setting: Some(Setting::without_mptcp()),
        sessions: 3,
        prepare: nothing,
        open: |_, pod, client| {
            Ok(Box::new(Etcd { http: Http::connect(pod, 2379)?, client, revision: 0 }))
        },
        verify: |_, pod, written| {
            let mut http = Http::connect(pod, 2379)?;
            for (client, n) in written.iter().enumerate() {
                let key = key(client);
                let range = json!({"key": key}).to_string();
                let found: Value =
                    serde_json::from_str(&http.request("POST", "/v3/kv/range", &range)?)?;
                let found = &found["kvs"][0];
                ensure!(
                    found["version"].as_str() == Some(n.to_string().as_str()),
                    "key {client}, {n} writes: {found}"
                );
                ensure!(found["value"] == base64(&n.to_string()), "key {client}: {found}");
            }
            Ok(())
        },
    }
}

struct Etcd {
    http: Http,
    client: usize,
    revision: u64,
}

impl Session for Etcd {
    fn write(&mut self, n: u64) -> Result<()> {
        let put =
            json!({"key": key(self.client), "value": base64(&n.to_string()), "prev_kv": true});
        let answer = self.http.request("POST", "/v3/kv/put", &put.to_string())?;
        let answer: Value = serde_json::from_str(&answer)?;
        let revision = answer["header"]["revision"].as_str().context("no revision")?.parse()?;
        ensure!(revision > self.revision, "revision {} was followed by {revision}", self.revision);
        self.revision = revision;
        let before = answer["prev_kv"]["value"].as_str().unwrap_or_default();
        let expected = if n == 1 { String::new() } else { base64(&(n - 1).to_string()) };
        ensure!(before == expected, "the value before was {before}, not {expected}");
        Ok(())
    }
}

fn key(client: usize) -> String {
    base64(&format!("key:{client}"))
}

fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut coded = String::new();
    for bytes in text.as_bytes().chunks(3) {
        let bits = bytes.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - bytes.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            coded.push(if place > bytes.len() { '=' } else { char::from(digit) });
        }
    }
    coded
}
