//! Message brokers: NATS with JetStream (Go), RabbitMQ over STOMP (Erlang).

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Pod;

use crate::{
    frame::{Application, Session, Setting, nothing},
    wire::Wire,
};

/// NATS with a stream on disk.
pub fn nats() -> Application {
    Application {
        name: "nats",
        script: "exec nats-server -js -sd /tmp/nats -a 0.0.0.0",
        port: Some(4222),
        files: &[],
        container: Value::Null,
        pod: Value::Null,
        setting: Some(Setting::without_mptcp()),
        sessions: 4,
        prepare: nothing,
        open: |_, pod, client| {
            let mut nats = Nats::connect(pod, client)?;
            let stream = json!({
                "name": nats.subject, "subjects": [nats.subject], "storage": "file",
            });
            let made = nats.request(&format!("$JS.API.STREAM.CREATE.{}", nats.subject), &stream)?;
            ensure!(made["error"].is_null(), "{made}");
            Ok(Box::new(nats))
        },
        verify: |_, pod, written| {
            for (client, n) in written.iter().enumerate() {
                let mut nats = Nats::connect(pod, client)?;
                let info =
                    nats.request(&format!("$JS.API.STREAM.INFO.{}", nats.subject), &Value::Null)?;
                ensure!(info["state"]["messages"] == *n, "stream {client}, {n} writes: {info}");
            }
            Ok(())
        },
    }
}

struct Nats {
    wire: Wire,
    subject: String,
}

impl Nats {
    fn connect(pod: &Pod, client: usize) -> Result<Nats> {
        let mut wire = Wire::connect(pod, 4222)?;
        let greeting = wire.line()?;
        ensure!(greeting.starts_with("INFO "), "{greeting}");
        let inbox = format!("inbox.{client}");
        wire.send(format!("CONNECT {{\"verbose\":false}}\r\nSUB {inbox} 1\r\n"))?;
        Ok(Nats { wire, subject: format!("orders-{client}") })
    }

    /// Publishes a message and returns the answer to it.
    fn request(&mut self, subject: &str, message: &Value) -> Result<Value> {
        let message = if message.is_null() { String::new() } else { message.to_string() };
        let inbox = self.subject.replace("orders-", "inbox.");
        self.wire.send(format!("PUB {subject} {inbox} {}\r\n{message}\r\n", message.len()))?;
        loop {
            let line = self.wire.line()?;
            if line == "PING" {
                self.wire.send("PONG\r\n")?;
                continue;
            }
            ensure!(line.starts_with("MSG "), "{line}");
            let length = line.rsplit(' ').next().context("no length")?.parse()?;
            let body = self.wire.bytes(length)?;
            self.wire.line()?;
            return Ok(serde_json::from_slice(&body)?);
        }
    }
}

impl Session for Nats {
    fn write(&mut self, n: u64) -> Result<()> {
        let answer = self.request(&self.subject.clone(), &json!(n))?;
        ensure!(answer["seq"] == n, "{answer}");
        Ok(())
    }
}

/// RabbitMQ: an Erlang VM that starts programs of its own.
pub fn rabbitmq() -> Application {
    Application {
        name: "rabbitmq",
        script: "mkdir /tmp/rabbit && cd /tmp/rabbit
            echo '[rabbitmq_stomp].' > plugins
            exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server",
        port: Some(61613),
        files: &[("rabbitmq.conf", "loopback_users = none\n")],
        container: json!({"env": [
            {"name": "RABBITMQ_NODENAME", "value": "rabbit@localhost"},
            {"name": "RABBITMQ_MNESIA_BASE", "value": "/tmp/rabbit/db"},
            {"name": "RABBITMQ_CONFIG_FILE", "value": "/code/rabbitmq.conf"},
            {"name": "RABBITMQ_LOGS", "value": "-"},
            {"name": "RABBITMQ_LOG_BASE", "value": "/tmp/rabbit/log"},
            {"name": "RABBITMQ_ENABLED_PLUGINS_FILE", "value": "/tmp/rabbit/plugins"},
            {"name": "RABBITMQ_PID_FILE", "value": "/tmp/rabbit/pid"},
        ]}),
        pod: Value::Null,
        setting: None,
        sessions: 3,
        prepare: nothing,
        open: |_, pod, client| Ok(Box::new(Stomp::connect(pod, client)?)),
        verify: |_, pod, written| {
            for (client, n) in written.iter().enumerate() {
                let mut stomp = Stomp::connect(pod, client)?;
                stomp.send(&format!(
                    "SUBSCRIBE\nid:1\ndestination:/queue/q{client}\nack:auto\n\n"
                ))?;
                for expected in 1..=*n {
                    let frame = stomp.receive()?;
                    let body = frame.rsplit("\n\n").next().unwrap_or_default();
                    ensure!(
                        frame.starts_with("MESSAGE") && body == expected.to_string(),
                        "queue {client}: {expected} of {n} is {frame:?}"
                    );
                }
            }
            Ok(())
        },
    }
}

struct Stomp {
    wire: Wire,
    client: usize,
}

impl Stomp {
    fn connect(pod: &Pod, client: usize) -> Result<Stomp> {
        let mut stomp = Stomp { wire: Wire::connect(pod, 61613)?, client };
        stomp.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n")?;
        let answer = stomp.receive()?;
        ensure!(answer.starts_with("CONNECTED"), "{answer}");
        Ok(stomp)
    }

    fn send(&mut self, frame: &str) -> Result<()> {
        self.wire.send(format!("{frame}\0"))
    }

    fn receive(&mut self) -> Result<String> {
        let frame = String::from_utf8(self.wire.until(0)?)?;
        Ok(frame.trim_start_matches('\n').to_owned())
    }
}

impl Session for Stomp {
    fn write(&mut self, n: u64) -> Result<()> {
        self.send(&format!(
            "SEND\ndestination:/queue/q{}\npersistent:true\nreceipt:{n}\n\n{n}",
            self.client
        ))?;
        let answer = self.receive()?;
        ensure!(
            answer.starts_with("RECEIPT") && answer.contains(&format!("receipt-id:{n}\n")),
            "{answer}"
        );
        Ok(())
    }
}
