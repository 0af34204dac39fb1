//! `nft list ruleset`: which tables do something.

/// Tables with a rule, or with a chain that drops by default, as `family name`; ours left out.
/// An empty table, such as a mere look with iptables leaves, changes no packet's way.
pub fn tables(ruleset: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut table = String::new();
    let mut depth = 0usize;
    let mut in_chain = false;
    for line in ruleset.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if depth == 0
            && let Some(name) = line.strip_prefix("table ").and_then(|l| l.strip_suffix(" {"))
        {
            name.clone_into(&mut table);
        }
        if depth == 1 {
            in_chain = line.starts_with("chain ");
        }
        let acts = match line.strip_prefix("type ") {
            Some(hook) => hook.contains("policy drop"),
            None => line != "}",
        };
        if depth == 2 && in_chain && acts && found.last() != Some(&table) {
            found.push(table.clone());
        }
        let opened = line.matches('{').count();
        let closed = line.matches('}').count();
        depth = (depth + opened).saturating_sub(closed);
    }
    found.retain(|table| !table.ends_with(&format!(" {}", transship_host::network::TABLE)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_do_nothing_and_our_own_are_not_the_applications() {
        let ruleset = "\
# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
\tchain PREROUTING {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t}
}
table inet mesh {
\tset ports {
\t\ttype inet_service
\t\telements = { 80, 443 }
\t}

\tchain out {
\t\ttype nat hook output priority dstnat; policy accept;
\t\ttcp dport { 80, 443 } redirect to :15001
\t\tip daddr 10.0.0.1 accept
\t}
}
table ip6 filter {
\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
table ip unused {
\tset s {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1 }
\t}
\tmap m {
\t\ttype inet_service : verdict
\t\telements = { 80 : accept,
\t\t\t     443 : drop }
\t}
}
table netdev transship {
\tchain in {
\t\tcounter packets 0 bytes 0 drop
\t}
}
";
        assert_eq!(tables(ruleset), ["inet mesh", "ip6 filter"]);
        assert!(tables("").is_empty());
    }
}
