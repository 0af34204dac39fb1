//! `transship-cni`: the last plugin of the node's CNI list. For the target pod of a migration it closes the
//! network and gives the interface the address and hardware address that the application had; for every other
//! pod it repeats the result of the plugins before it.
//!
//! Where the address does not move along, the new one that the plugins before have set stays, and the old one
//! becomes an alias for sockets that are bound to it.
//!
//! The address that the IPAM plugin gave (Y) stays reserved until DEL, which frees it by container id; the
//! old address (X) stays reserved on its home node. DEL never fails, so a pod can always be removed.

use std::io::Read;
use std::net::IpAddr;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use transship_host::network::{Address, NetNs, nft_program};
use transship_host::paths::{PodDir, Role};
use transship_host::record::{NetworkMode, Record, RecordNetwork, RecordState};
use transship_host::{HostRoot, lease};

/// The versions of the CNI specification whose chained plugins look the same to us.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A runtime's configuration is smaller by far.
const MAX_INPUT: u64 = 4 << 20;

/// An error as the specification wants it.
#[derive(Debug)]
struct CniError {
    code: u32,
    message: String,
    details: String,
}

impl CniError {
    fn new(code: u32, message: &str, details: impl Into<String>) -> Self {
        Self { code, message: message.to_owned(), details: details.into() }
    }
}

/// What the environment says.
#[derive(Debug, Default)]
struct Call {
    command: String,
    netns: String,
    interface: String,
    arguments: String,
    container_id: String,
}

/// The plugin's `main`.
pub fn run() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let call = Call {
        command: variable("CNI_COMMAND"),
        netns: variable("CNI_NETNS"),
        interface: variable("CNI_IFNAME"),
        arguments: variable("CNI_ARGS"),
        container_id: variable("CNI_CONTAINERID"),
    };
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let result = match read {
        Ok(_) => answer(&crate::host(), &call, &input),
        Err(error) => Err(CniError::new(5, "cannot read the configuration", error.to_string())),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(output)) => {
            println!("{output}");
            ExitCode::SUCCESS
        }
        Err(_) if call.command == "DEL" => ExitCode::SUCCESS,
        Err(error) => {
            let version = version_of(&input);
            println!(
                "{}",
                json!({"cniVersion": version, "code": error.code, "msg": error.message, "details": error.details})
            );
            ExitCode::FAILURE
        }
    }
}

fn version_of(input: &[u8]) -> String {
    serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|config| config["cniVersion"].as_str().map(str::to_owned))
        .unwrap_or_else(|| "1.0.0".into())
}

/// What to print.
fn answer(host: &HostRoot, call: &Call, input: &[u8]) -> Result<Option<String>, CniError> {
    match call.command.as_str() {
        "VERSION" => Ok(Some(
            json!({"cniVersion": version_of(input), "supportedVersions": VERSIONS}).to_string(),
        )),
        "ADD" => add(host, call, input).map(Some),
        "DEL" | "CHECK" | "GC" | "STATUS" => Ok(None),
        other => Err(CniError::new(4, "unknown CNI_COMMAND", other)),
    }
}

fn add(host: &HostRoot, call: &Call, input: &[u8]) -> Result<String, CniError> {
    let config: Map<String, Value> = serde_json::from_slice(input)
        .map_err(|error| CniError::new(6, "cannot decode the configuration", error.to_string()))?;
    let Some(previous) = config.get("prevResult") else {
        return Err(CniError::new(
            7,
            "transship-cni must come after another plugin in the list",
            "the configuration has no prevResult",
        ));
    };
    let Some(record) = record_of(host, call)? else { return Ok(previous.to_string()) };
    let again = |message: String| CniError::new(11, "the pod is being migrated", message);
    match (record.role, record.state) {
        (_, RecordState::Open | RecordState::Starting) => Ok(previous.to_string()),
        (Role::Target, RecordState::Restore | RecordState::Prepared) => {
            let mut result = previous.clone();
            take_over(host, call, &record, &mut result).map_err(again)?;
            Ok(result.to_string())
        }
        (role, state) => Err(again(format!(
            "the pod is the {role} of migration {} in state {state:?}, in which it gets no network",
            record.migration_uid
        ))),
    }
}

/// The record of the pod; an error only if this very pod has one that cannot be used.
fn record_of(host: &HostRoot, call: &Call) -> Result<Option<Record>, CniError> {
    let Some(uid) = argument(&call.arguments, "K8S_POD_UID") else { return Ok(None) };
    let Ok(pod) = host.pod(uid) else { return Ok(None) };
    if !pod.exists().unwrap_or(false) {
        return Ok(None);
    }
    read(&pod).map_err(|reason| CniError::new(11, "the pod's host record is unusable", reason))
}

fn read(pod: &PodDir) -> Result<Option<Record>, String> {
    pod.read_record().map_err(|error| error.chain())
}

/// A value of CNI_ARGS (`KEY=VALUE;KEY=VALUE`).
fn argument<'a>(arguments: &'a str, key: &str) -> Option<&'a str> {
    arguments
        .split(';')
        .filter_map(|pair| pair.split_once('='))
        .find(|(k, _)| *k == key)
        .map(|(_, v)| v)
}

/// Closes the namespace, then takes over what of the identity moves along. In this order: from the first moment at
/// which the old address is set here, the source may still answer for it.
fn take_over(
    host: &HostRoot,
    call: &Call,
    record: &Record,
    result: &mut Value,
) -> Result<(), String> {
    let chain = |error: transship_host::Error| error.chain();
    let netns = NetNs::at(&call.netns);
    let devices = netns.devices().map_err(chain)?;
    netns.close(&nft_program(host), &devices).map_err(chain)?;
    let Some(network) = record.network.as_ref() else { return Ok(()) };
    let aliases = network.aliases().map_err(chain)?;
    netns.add_aliases(&call.interface, &aliases).map_err(chain)?;
    if network.mode == NetworkMode::Close {
        return Ok(());
    }
    if network.interface != call.interface {
        return Err(format!(
            "the address belongs to interface {}, and this is {}",
            network.interface, call.interface
        ));
    }
    let changes = rewrite(result, call, network)?;
    let mac = network.hardware_address().map_err(chain)?;
    for (given, kept) in changes {
        netns.take_over(&call.interface, given, kept, mac).map_err(chain)?;
        // Where the IPAM is another than host-local it stays reserved until DEL.
        lease::release_unused(host, given.ip, &call.container_id).map_err(chain)?;
    }
    Ok(())
}

/// Puts the old addresses and hardware address into the result; returns pairs of an address that the IPAM
/// gave and the one to set instead. Each family has one.
fn rewrite(
    result: &mut Value,
    call: &Call,
    network: &RecordNetwork,
) -> Result<Vec<(Address, Address)>, String> {
    let mut kept: Vec<IpAddr> = network.addresses().map_err(|error| error.chain())?;
    let mut changes = Vec::new();
    let mut interface_index = None;
    for (index, interface) in result["interfaces"].as_array_mut().into_iter().flatten().enumerate()
    {
        let inside = interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
        if inside && interface["name"] == call.interface.as_str() {
            interface["mac"] = json!(network.mac);
            interface_index = Some(index);
        }
    }
    for entry in result["ips"].as_array_mut().into_iter().flatten() {
        // An address without an interface belongs to the only one.
        let on_interface = match entry["interface"].as_u64() {
            Some(index) => usize::try_from(index).ok() == interface_index,
            None => true,
        };
        let Some(given) = entry["address"].as_str().and_then(|text| text.parse::<Address>().ok())
        else {
            continue;
        };
        let same_family = |ip: &IpAddr| given.ip.is_ipv4() == ip.is_ipv4();
        if on_interface && let Some(at) = kept.iter().position(same_family) {
            let new = Address { ip: kept.remove(at), prefix: given.prefix };
            entry["address"] = json!(new.to_string());
            changes.push((given, new));
        }
    }
    match kept.first() {
        None => Ok(changes),
        Some(ip) => {
            Err(format!("the result has no address of {ip}'s family on {}", call.interface))
        }
    }
}

#[cfg(test)]
#[path = "cni_tests.rs"]
mod tests;
