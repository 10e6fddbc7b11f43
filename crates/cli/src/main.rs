//! The `densely` program: thin, one module per command; the work is in the domain crates.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program"
)]

mod commands;
mod compare;
mod fitting;
mod recipe;

use std::any::Any;
use std::io::IsTerminal;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use densely_core::{Device, Error, Result};
use tracing_subscriber::EnvFilter;

/// Deep learning with MLP-like models on tables, series, clicks, pictures and fields, and what language models know: train, evaluate, apply.
///
/// Exit status: 0 the work is done, 1 it failed, 2 the arguments are wrong, 141 the reader of its output closed the pipe.
#[derive(Debug, Parser)]
#[command(name = "densely", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, global = true, default_value = "auto", value_parser = parse_device)]
    device: Device,
    /// Threads for tensor operations; all cores when left out.
    #[arg(long, global = true, value_parser = clap::value_parser!(i32).range(1..=4096))]
    threads: Option<i32>,
    /// Seed of initial weights, data order and dropout.
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Print nothing but results and errors.
    #[arg(long, global = true)]
    quiet: bool,
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the registered models.
    Models(commands::models::Arguments),
    /// Run a registered model on tensors from a file.
    Forward(commands::forward::Arguments),
    /// Train and evaluate a recipe.
    Train(commands::train::Arguments),
    /// Search for better settings of a recipe.
    Tune(commands::tune::Arguments),
    /// Fit, evaluate and apply models on your own CSV or Parquet.
    #[command(subcommand)]
    Tabular(commands::tabular::Command),
    /// Forecast the series of your own CSV or Parquet.
    #[command(subcommand)]
    Forecast(commands::forecast::Command),
    /// Fit, evaluate and apply click models on your own CSV or Parquet, and rank candidates.
    #[command(subcommand)]
    Ctr(commands::ctr::Command),
    /// Train, evaluate and apply classifiers on your own pictures.
    #[command(subcommand)]
    Vision(commands::vision::Command),
    /// Take noise, blur or rain out of pictures of any size.
    Restore(commands::restore::Arguments),
    /// Fit a network to a picture, sound, film, surface or scene, and render it.
    #[command(subcommand)]
    Field(commands::field::Command),
    /// Judge and continue texts with a language model of a local folder or GGUF file.
    #[command(subcommand)]
    Lm(commands::lm::Command),
    /// Trace, localise and edit what a language model knows.
    #[command(subcommand)]
    Interp(commands::interp::Command),
    /// Answer prediction requests over HTTP with a fitted run.
    #[cfg(feature = "serve")]
    Serve(commands::serve::Arguments),
}

fn parse_device(text: &str) -> std::result::Result<Device, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = if cli.common.quiet { "error" } else { "info" };
    let filter = EnvFilter::try_from_env("DENSELY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    if let Some(threads) = cli.common.threads {
        tch::set_num_threads(threads);
    }
    if let Err(error) = densely_train::signal::install() {
        tracing::warn!("Ctrl-C will not save: {error}");
    }
    quiet_about_closed_pipes();
    match std::panic::catch_unwind(AssertUnwindSafe(|| run(&cli))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if is_closed_pipe(&error) => CLOSED_PIPE.into(),
        Ok(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(panic) if is_about_closed_pipe(panic.as_ref()) => CLOSED_PIPE.into(),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What a shell reports of a program whose reader, such as `head`, had enough.
const CLOSED_PIPE: u8 = 141;

fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Whether it is `println!`'s.
fn is_about_closed_pipe(panic: &(dyn Any + Send)) -> bool {
    let text = panic.downcast_ref::<String>();
    text.is_some_and(|text| {
        text.starts_with("failed printing to stdout") && text.contains("Broken pipe")
    })
}

fn quiet_about_closed_pipes() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !is_about_closed_pipe(info.payload()) {
            others(info);
        }
    }));
}

fn run(cli: &Cli) -> Result<()> {
    let common = &cli.common;
    match &cli.command {
        Command::Models(arguments) => commands::models::run(arguments, common),
        Command::Forward(arguments) => commands::forward::run(arguments, common),
        Command::Train(arguments) => commands::train::run(arguments, common),
        Command::Tune(arguments) => commands::tune::run(arguments, common),
        Command::Tabular(command) => commands::tabular::run(command, common),
        Command::Forecast(command) => commands::forecast::run(command, common),
        Command::Ctr(command) => commands::ctr::run(command, common),
        Command::Vision(command) => commands::vision::run(command, common),
        Command::Restore(arguments) => commands::restore::run(arguments, common),
        Command::Field(command) => commands::field::run(command, common),
        Command::Lm(command) => commands::lm::run(command, common),
        Command::Interp(command) => commands::interp::run(command, common),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => commands::serve::run(arguments, common),
    }
}
