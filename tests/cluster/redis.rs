//! A real application under load: redis with 200 MB of keys.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use transship_tests::cluster::{Cluster, Pod};

const REDIS: &str = include_str!("../../examples/redis.yaml");

/// One connection to redis.
struct Redis {
    reader: BufReader<TcpStream>,
}

impl Redis {
    fn connect(pod: &Pod) -> Result<Redis> {
        let stream = TcpStream::connect((pod.ip.as_str(), 6379))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Redis { reader: BufReader::new(stream) })
    }

    /// Sends an inline command and returns the one-line reply without its type character.
    fn ask(&mut self, command: &str) -> Result<String> {
        self.reader.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some((":" | "+", reply)) => Ok(reply.to_owned()),
            _ => bail!("{command}: {line:?}"),
        }
    }

    fn number(&mut self, command: &str) -> Result<u64> {
        self.ask(command)?.parse().context("not a number")
    }
}

#[test]
fn redis_moves_to_and_fro_under_load_and_loses_nothing() -> Result<()> {
    let cluster = Cluster::with_namespace("redis")?;
    cluster.apply(REDIS)?;
    cluster.rolled_out("redis")?;
    let mut pod = cluster.pod("app=redis")?;
    let mut control = Redis::connect(&pod)?;
    // 200 MB: 2,000 values of 100 kB, each different.
    let fill = "for i = 0, 1999 do redis.call('set', 'key:' .. i, string.rep(i .. ' ', 100000 / #(i .. ' '))) end return 1";
    control.reader.get_mut().write_all(
        format!("*3\r\n$4\r\nEVAL\r\n${}\r\n{fill}\r\n$1\r\n0\r\n", fill.len()).as_bytes(),
    )?;
    let mut reply = String::new();
    control.reader.read_line(&mut reply)?;
    ensure!(reply == ":1\r\n", "{reply}");

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let mut redis = Redis::connect(&pod)?;
            let stop = stop.clone();
            Ok(std::thread::spawn(move || -> Result<u64> {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let now = redis.number(&format!("INCR counter:{client}"))?;
                    ensure!(now == last + 1, "client {client}: {last} was followed by {now}");
                    redis.number("INCR total")?;
                    last = now;
                }
                Ok(last)
            }))
        })
        .collect::<Result<_>>()?;

    for _ in 0..2 {
        let migration = cluster.migrate(&pod.name, pod.other_node())?;
        let object = cluster.succeeded(&migration, Duration::from_secs(120))?;
        eprintln!("redis stood still for {}", object["status"]["downtime"]);
        pod = cluster.pod("app=redis")?;
    }

    stop.store(true, Ordering::Relaxed);
    let mut sum = 0;
    for client in clients {
        sum += client.join().expect("client")?;
    }
    ensure!(sum > 1000, "the clients did hardly anything: {sum}");
    let total = control.number("INCRBY total 0")?;
    ensure!(total == sum, "redis counted {total}, the clients {sum}");
    ensure!(control.number("DBSIZE")? == 2000 + 8 + 1);
    for key in [0, 999, 1999] {
        let unit = format!("{key} ");
        let length = control.number(&format!("STRLEN key:{key}"))?;
        ensure!(
            length == (100_000 / unit.len() * unit.len()) as u64,
            "key:{key} has {length} bytes"
        );
    }
    Ok(())
}
