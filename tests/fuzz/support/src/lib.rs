//! What the fuzz targets of several crates share: how they read a fuzzer's bytes, how JSON is changed so that it stays
//! JSON, and where files of a test case are put.

pub mod files;
pub mod input;
pub mod json;

pub use files::Scratch;
pub use input::Input;
