//! The command line, in the style of Go's `flag` package: `-name value`, `-name=value`, one or two dashes.

/// What containerd passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// containerd's namespace (`k8s.io`).
    pub namespace: String,
    /// Id of the container or sandbox.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// containerd's binary, for publishing events; not used, events go over ttrpc.
    pub publish_binary: String,
    /// The bundle; only `delete` is given it.
    pub bundle: String,
    /// Address of the socket a daemon serves on; from our own `start`.
    pub socket: String,
    /// The configuration; from our own `start`, empty for the usual one.
    pub config: String,
    /// More log lines.
    pub debug: bool,
    /// `-v`: print the version.
    pub version: bool,
    /// `-info`: print what the runtime can do.
    pub info: bool,
    /// `-h`: print what the program is for.
    pub help: bool,
    /// `start`, `delete`, or empty for the daemon itself.
    pub action: String,
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// A flag nobody knows.
    #[error(
        "unknown flag {0}; the flags are -namespace, -id, -address, -publish-binary, -bundle, -socket, -config, -debug, -info, -v and -h"
    )]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("the flag {0} needs a value")]
    MissingValue(String),
    /// A switch with something else than true or false.
    #[error("the flag {0} is a switch and takes only true or false")]
    NotASwitch(String),
    /// More than an action.
    #[error("unexpected argument {0:?} after the action")]
    Extra(String),
}

impl Args {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// Names the argument that is wrong.
    pub fn parse(arguments: &[String]) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                if !args.action.is_empty() {
                    return Err(ArgsError::Extra(argument.clone()));
                }
                args.action.clone_from(argument);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if let Some(switch) = args.switch(name) {
                *switch = match value.as_deref() {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(_) => return Err(ArgsError::NotASwitch(argument.clone())),
                };
                continue;
            }
            let Some(field) = args.field(name) else {
                return Err(ArgsError::UnknownFlag(argument.clone()));
            };
            *field = value
                .or_else(|| rest.next().cloned())
                .ok_or_else(|| ArgsError::MissingValue(argument.clone()))?;
        }
        Ok(args)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            "h" | "help" => Some(&mut self.help),
            _ => None,
        }
    }

    fn field(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "id" => Some(&mut self.id),
            "address" => Some(&mut self.address),
            "publish-binary" => Some(&mut self.publish_binary),
            "bundle" => Some(&mut self.bundle),
            "socket" => Some(&mut self.socket),
            "config" => Some(&mut self.config),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(&line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_start_of_every_containerd_is_understood() {
        let args = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start",
        );
        let args = args.unwrap();
        assert_eq!(
            (args.namespace.as_str(), args.id.as_str(), args.action.as_str()),
            ("k8s.io", "abc", "start")
        );
        assert!(args.debug);
        assert_eq!(parse("--id=abc -debug=false delete").unwrap().id, "abc");
        assert!(parse("--help").unwrap().help && parse("-h").unwrap().help);
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(parse("-nope x").unwrap_err(), ArgsError::UnknownFlag("-nope".into()));
        assert_eq!(parse("-id").unwrap_err(), ArgsError::MissingValue("-id".into()));
        assert_eq!(parse("start delete").unwrap_err(), ArgsError::Extra("delete".into()));
        assert_eq!(parse("-debug=2").unwrap_err(), ArgsError::NotASwitch("-debug=2".into()));
    }
}
