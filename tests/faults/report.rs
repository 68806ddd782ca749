//! What came out, a line a fault: for who watches, and for the tables of docs/reliability.md.

use std::fs::File;
use std::io::Write;

const FILE: &str = "/var/log/faults.tsv";

/// Writes a line of fields that are divided by tabs.
///
/// Straight to the standard error output, which the runner of the tests does not keep back: a whole run takes its time.
pub fn line(fields: &[&str]) {
    let fields: Vec<String> = fields.iter().map(|field| field.replace(['\t', '\n'], " ")).collect();
    let line = fields.join("\t") + "\n";
    // Nobody watches, or the disk is full on purpose: the test goes on.
    let _ = std::io::stderr().write_all(line.replace('\t', " | ").as_bytes());
    let file = File::options().append(true).create(true).open(FILE);
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}
