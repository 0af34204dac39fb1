//! Relational databases, with their own client programs. A temporary table lives as long as the
//! session: it tells that the connection's state on the server is still the same.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Pod;

use crate::{
    client::Client,
    frame::{Application, Session, Setting},
};

/// PostgreSQL on an emptyDir: processes that share POSIX memory.
pub fn postgresql() -> Application {
    Application {
        name: "postgresql",
        script: "bin=/usr/lib/postgresql/18/bin
            $bin/initdb -D /data/pg --locale=C --auth=trust -U app >/dev/null
            echo 'host all all all trust' >> /data/pg/pg_hba.conf
            exec $bin/postgres -D /data/pg -k /tmp -h 0.0.0.0",
        port: Some(5432),
        files: &[],
        container: json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]}),
        pod: json!({"volumes": [{"name": "data", "emptyDir": {}}]}),
        setting: None,
        sessions: 3,
        prepare: |world, pod| {
            let mut psql = Client::start(world, &psql(pod))?;
            let answer = psql.ask(
                "create table written (client int, n bigint, primary key (client, n)); select 'made';",
            )?;
            ensure!(answer == "made", "{answer}");
            Ok(())
        },
        open: |world, pod, client| {
            let mut psql = Client::start(world, &psql(pod))?;
            psql.tell("create temporary table mine (n bigint);")?;
            Ok(Box::new(Sql { program: psql, client }))
        },
        verify: |world, pod, written| verify(&mut Client::start(world, &psql(pod))?, written),
    }
}

fn psql(pod: &Pod) -> [&str; 9] {
    let program = "/usr/lib/postgresql/18/bin/psql";
    [program, "-h", &pod.ip, "-U", "app", "-qAtX", "-F\t", "-d", "postgres"]
}

/// MariaDB with InnoDB on the container's own file system. It would use io_uring, which cannot be
/// moved; the runtime's seccomp profile keeps it from that.
pub fn mariadb() -> Application {
    Application {
        name: "mariadb",
        script: "mkdir /tmp/db
            mariadb-install-db --no-defaults --force --datadir=/tmp/db \
                --auth-root-authentication-method=normal --skip-test-db >/tmp/install.log 2>&1
            exec mariadbd --no-defaults --datadir=/tmp/db --socket=/tmp/mariadb.sock \
                --skip-grant-tables --skip-name-resolve --bind-address=0.0.0.0 \
                --innodb-buffer-pool-size=32M",
        port: Some(3306),
        files: &[],
        container: Value::Null,
        pod: Value::Null,
        setting: Some(Setting::without_io_uring()),
        sessions: 3,
        prepare: |world, pod| {
            let mut mariadb = Client::start(world, &mariadb_client(pod, "mysql"))?;
            let answer = mariadb.ask(
                "create database shop; create table shop.written \
                 (client int, n bigint, primary key (client, n)) engine=innodb; select 'made';",
            )?;
            ensure!(answer == "made", "{answer}");
            Ok(())
        },
        open: |world, pod, client| {
            let mut program = Client::start(world, &mariadb_client(pod, "shop"))?;
            program.tell("create temporary table mine (n bigint);")?;
            Ok(Box::new(Sql { program, client }))
        },
        verify: |world, pod, written| {
            verify(&mut Client::start(world, &mariadb_client(pod, "shop"))?, written)
        },
    }
}

fn mariadb_client<'a>(pod: &'a Pod, database: &'a str) -> [&'a str; 8] {
    ["mariadb", "--no-defaults", "--skip-ssl", "-h", &pod.ip, "-NBn", "-D", database]
}

struct Sql {
    program: Client,
    client: usize,
}

impl Session for Sql {
    fn write(&mut self, n: u64) -> Result<()> {
        let client = self.client;
        let answer = self.program.ask(&format!(
            "insert into written values ({client}, {n}); insert into mine values ({n}); \
             select count(*), max(n) from mine;"
        ))?;
        ensure!(answer == format!("{n}\t{n}"), "the session's own table has {answer:?}");
        Ok(())
    }
}

fn verify(program: &mut Client, written: &[u64]) -> Result<()> {
    for (client, n) in written.iter().enumerate() {
        let answer = program
            .ask(&format!("select count(*), max(n) from written where client = {client};"))?;
        ensure!(answer == format!("{n}\t{n}"), "client {client} wrote {n}, the table has {answer}");
    }
    Ok(())
}
