//! Tests that go through the crate's public doors.

mod contract;
mod folder;
mod forward;
mod generate;
mod gguf;
mod goldens;
mod hooks;
mod kv;
mod patching;
mod process;
mod tiny;
mod tokenizer;
