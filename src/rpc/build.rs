//! Generates the gRPC code from `proto/transship.proto`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        // A holder leaves its last status in a file for the agent.
        .type_attribute(
            "SideStatus",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        )
        .compile_protos(&["proto/transship.proto"], &["proto"])?;
    Ok(())
}
