//! Developer tasks: `cargo xtask TASK`.
//!
//! One module per task. This file only parses the command line and hands over; a task is a module
//! with `Args` and `run(Args) -> anyhow::Result<ExitCode>`.

mod bench;
mod demo;
mod generate;
mod images;
mod oci;
mod sandbox;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Developer tasks of Transship")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure, most of it on the running sandbox
    Bench(bench::Args),
    /// Move the example application on the sandbox, and show what its client saw
    Demo(demo::Args),
    /// Build the product's images as OCI archives
    Images(images::Args),
    /// Run all tests
    Test(test::Args),
    /// Write the generated files, or check them
    Gen(generate::Args),
    /// A real Kubernetes cluster on this machine, made from packages
    Sandbox(sandbox::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Bench(args) => bench::run(args),
        Task::Demo(args) => demo::run(args),
        Task::Images(args) => images::run(args),
        Task::Test(args) => test::run(args),
        Task::Gen(args) => generate::run(args),
        Task::Sandbox(args) => sandbox::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
