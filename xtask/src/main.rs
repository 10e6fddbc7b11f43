//! `cargo xtask`: everything that a contributor or a user runs, from `setup` to `reproduce`.
//!
//! Builds in seconds, without libtorch and without any crate of this workspace: it is what fetches libtorch.
//! Exit status: 0 done, 1 failed (one sentence on stderr says what to do), 2 bad arguments.
#![expect(clippy::print_stderr, reason = "a command line program")]

/// Prints a line on stdout. A reader that has gone (`| head`) is no reason to panic, as `println!` does.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout().lock(), $($part)*);
    }};
}

/// [`say!`] without the end of the line.
macro_rules! say_part {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stdout().lock(), $($part)*);
    }};
}

mod archive;
mod bench;
mod cache;
mod checks;
mod data;
mod dataset;
mod docs;
mod doctor;
mod download;
mod fetch;
mod goldens;
mod graph;
mod index;
mod libtorch;
mod models;
mod packages;
mod page;
mod recipe;
mod reproduce;
mod safetensors;
mod setup;
mod shell;
mod sources;
mod table;
mod tidy;
mod unpacked;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands: set up, test, fetch data, reproduce, measure.
///
/// Exit status: 0 done, 1 failed, 2 bad arguments. Environment: `DENSELY_LIBTORCH` (a libtorch 2.11.0 folder to
/// use; cargo overwrites `LIBTORCH` for `cargo xtask`), `DENSELY_CACHE` (all caches), `DENSELY_DATA` (data sets),
/// `DENSELY_DATA_MIRROR` (a folder to take data files from), `DENSELY_PYTHON` (an interpreter with python/requirements.txt).
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or fetch libtorch 2.11.0 and link .libtorch to it.
    Setup(setup::Arguments),
    /// Say what is wrong with this machine, and how to mend it.
    Doctor,
    /// Run all tests, examples and `tidy`.
    Test(checks::TestArguments),
    /// Formatting, clippy and documentation without warnings.
    Lint,
    /// Rules that no other tool checks: crate graph, file sizes, stale tables.
    Tidy,
    /// All that must pass before a change is taken: lint, test, reproduce --smoke.
    Ci,
    /// Data sets: list, fetch, verify.
    #[command(subcommand)]
    Data(data::Command),
    /// Train the recipes and write published / reference / ours.
    Reproduce(reproduce::Arguments),
    /// Measure; with --peers beside the same work in Python.
    Bench(bench::Arguments),
    /// Write the goldens again from the reference packages.
    Goldens(goldens::Arguments),
    /// The table of registered models.
    Models(models::Arguments),
    /// Check the book's links and build it.
    Docs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Setup(arguments) => setup::run(arguments),
        Command::Doctor => doctor::run(),
        Command::Test(arguments) => checks::test(arguments),
        Command::Lint => checks::lint(),
        Command::Tidy => tidy::run(),
        Command::Ci => checks::ci(),
        Command::Data(command) => data::run(command),
        Command::Reproduce(arguments) => reproduce::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Goldens(arguments) => goldens::run(arguments),
        Command::Models(arguments) => models::run(arguments),
        Command::Docs => docs::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
