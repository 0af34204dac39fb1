//! Web servers: nginx, Apache with PHP, gunicorn, Node.js, Tomcat.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Pod;

use crate::{
    frame::{Application, Session, Setting, nothing},
    native::Wheels,
    wire::Http,
};

const PORT: u16 = 8080;

/// nginx with two workers that write files.
pub fn nginx() -> Application {
    Application {
        name: "nginx",
        script: "mkdir /tmp/body /tmp/files; exec nginx -c /code/nginx.conf",
        port: Some(PORT),
        files: &[("nginx.conf", include_str!("files/nginx.conf"))],
        container: Value::Null,
        pod: Value::Null,
        setting: None,
        sessions: 4,
        prepare: nothing,
        open: |_, pod, client| {
            let mut http = Http::connect(pod, PORT)?;
            let connection = connection(&mut http)?.0;
            Ok(Box::new(Nginx { http, connection, client }))
        },
        verify: |_, pod, written| {
            let mut http = Http::connect(pod, PORT)?;
            for (client, n) in written.iter().enumerate() {
                for write in n.saturating_sub(KEPT) + 1..=*n {
                    let text = http.get(&file(client, write))?;
                    ensure!(text == content(write), "client {client}'s write {write} is lost");
                }
            }
            Ok(())
        },
    }
}

/// Files by client; then the first are written anew.
const KEPT: u64 = 100;

fn file(client: usize, write: u64) -> String {
    format!("/{client}-{}", write % KEPT)
}

/// More than nginx keeps in memory.
fn content(n: u64) -> String {
    n.to_string().repeat(2000 / n.to_string().len())
}

/// nginx's own number of the connection, and of requests on it.
fn connection(http: &mut Http) -> Result<(u64, u64)> {
    let text = http.get("/connection")?;
    let (connection, requests) = text.split_once(' ').context("no number")?;
    Ok((connection.parse()?, requests.parse()?))
}

struct Nginx {
    http: Http,
    connection: u64,
    client: usize,
}

impl Session for Nginx {
    fn write(&mut self, n: u64) -> Result<()> {
        self.http.request("PUT", &file(self.client, n), &content(n))?;
        let seen = connection(&mut self.http)?;
        // One request when it was opened, then two for each write.
        ensure!(seen == (self.connection, 2 * n + 1), "connection and requests are {seen:?}");
        Ok(())
    }
}

/// A session that asks for the next number of its own.
struct Counter {
    http: Http,
    path: String,
}

impl Counter {
    /// Asks for a number, which is to be the n-th.
    fn next(&mut self, n: u64) -> Result<()> {
        let answer = self.http.get(&self.path)?;
        let number = answer.split_whitespace().next().context("an empty answer")?;
        ensure!(number == n.to_string(), "the number is {number}");
        Ok(())
    }
}

impl Session for Counter {
    fn write(&mut self, n: u64) -> Result<()> {
        self.next(n)
    }
}

fn counter(pod: &Pod, path: String) -> Result<Box<dyn Session>> {
    Ok(Box::new(Counter { http: Http::connect(pod, PORT)?, path }))
}

/// Each number as the next client would get it: one more than was acknowledged.
fn next_numbers(pod: &Pod, written: &[u64], path: fn(usize) -> String) -> Result<()> {
    for (client, n) in written.iter().enumerate() {
        Counter { http: Http::connect(pod, PORT)?, path: path(client) }
            .next(n + 1)
            .with_context(|| format!("client {client}, after {n} writes"))?;
    }
    Ok(())
}

/// Apache with processes made ahead, and PHP's sessions in files of the container's file system.
pub fn apache() -> Application {
    Application {
        name: "apache",
        // PHP remembers for two minutes where links led, and the links of a ConfigMap lead elsewhere
        // after every change of it, and after a move.
        script: "mkdir /tmp/apache /tmp/sessions /tmp/www; cp /code/count.php /tmp/www
            exec apache2 -f /code/apache.conf -DFOREGROUND",
        port: Some(PORT),
        files: &[
            ("apache.conf", include_str!("files/apache.conf")),
            ("count.php", include_str!("files/count.php")),
        ],
        container: Value::Null,
        pod: Value::Null,
        setting: None,
        sessions: 6,
        prepare: nothing,
        open: |_, pod, _| counter(pod, "/count.php".into()),
        verify: |world, pod, written| {
            // The files themselves: a session that is lost begins anew without an error.
            let script = "cat /tmp/sessions/sess_*";
            let text = world.cluster.kubectl(&["exec", &pod.name, "--", "sh", "-c", script])?;
            for n in written {
                ensure!(text.contains(&format!("n|i:{n};")), "no session with {n}: {text}");
            }
            Ok(())
        },
    }
}

/// gunicorn: four workers made ahead, threads, memory and a semaphore shared by all.
pub fn gunicorn() -> Application {
    Application {
        name: "gunicorn",
        script: "exec gunicorn --preload --workers 4 --worker-class gthread --threads 2 \
                 --keep-alive 3600 --pythonpath /code --bind 0.0.0.0:8080 counter:app",
        port: Some(PORT),
        files: &[("counter.py", include_str!("files/counter.py"))],
        container: json!({"env": [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}]}),
        pod: Value::Null,
        setting: None,
        sessions: 6,
        prepare: nothing,
        open: |_, pod, client| counter(pod, path_with_query(client)),
        verify: |_, pod, written| next_numbers(pod, written, path_with_query),
    }
}

fn path_with_query(client: usize) -> String {
    format!("/?{client}")
}

/// Node.js. libuv would use io_uring, which cannot be moved; the runtime's seccomp profile keeps it
/// from that.
pub fn node() -> Application {
    Application {
        name: "node",
        script: "exec node /code/counter.js",
        port: Some(PORT),
        files: &[("counter.js", include_str!("files/counter.js"))],
        container: Value::Null,
        pod: Value::Null,
        setting: Some(Setting::without_io_uring()),
        sessions: 6,
        prepare: nothing,
        open: |_, pod, client| {
            let counter = Counter { http: Http::connect(pod, PORT)?, path: path(client) };
            Ok(Box::new(Ticking { counter, wheels: Wheels::new(&["the timer"]) }))
        },
        verify: |_, pod, written| next_numbers(pod, written, path),
    }
}

/// Counts, and sees to it that the server's timer goes on.
struct Ticking {
    counter: Counter,
    wheels: Wheels,
}

impl Session for Ticking {
    fn write(&mut self, n: u64) -> Result<()> {
        let Ticking { counter, wheels } = self;
        counter.next(n)?;
        wheels.turn(|| {
            let answer = counter.http.get("/ticks")?;
            let ticks = answer.split_whitespace().nth(1).context("no ticks")?;
            Ok(vec![ticks.parse()?])
        })
    }
}

fn path(client: usize) -> String {
    format!("/{client}")
}

/// Tomcat on a Java VM: sessions in memory, pages compiled at their first use.
pub fn tomcat() -> Application {
    Application {
        name: "tomcat",
        script: "base=/tmp/tomcat
            mkdir -p $base/conf $base/logs $base/temp $base/webapps/ROOT
            cp /code/server.xml /code/web.xml $base/conf; cp /code/count.jsp $base/webapps/ROOT
            home=/usr/share/tomcat11
            exec /usr/lib/jvm/default-java/bin/java -Xmx64m \
                -cp $home/bin/bootstrap.jar:$home/bin/tomcat-juli.jar \
                -Dcatalina.home=$home -Dcatalina.base=$base -Djava.io.tmpdir=$base/temp \
                org.apache.catalina.startup.Bootstrap start",
        port: Some(PORT),
        files: &[
            ("server.xml", include_str!("files/server.xml")),
            ("web.xml", include_str!("files/web.xml")),
            ("count.jsp", include_str!("files/count.jsp")),
        ],
        container: Value::Null,
        pod: Value::Null,
        setting: None,
        sessions: 4,
        prepare: nothing,
        open: |_, pod, _| counter(pod, "/count.jsp".into()),
        // Each session's numbers were its own memory in the server.
        verify: |_, _, _| Ok(()),
    }
}
