//! Whether the ports can be had, found out before anything is made.

use std::io;
use std::net::{SocketAddr, TcpListener};

use farshore_api::Exit;

use crate::failure::{Failure, Outcome, reason};

use super::settings::UpSettings;

/// Refuses ports that another process has.
pub(super) fn check_free(settings: &UpSettings) -> Outcome {
    check(settings.control_address(), "the control plane", "--control-port")?;
    check(settings.node_address(), "the node", "--node-port")
}

fn check(address: SocketAddr, whose: &str, option: &str) -> Outcome {
    let Err(error) = TcpListener::bind(address) else { return Ok(()) };
    let port = address.port();
    Err(match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(
            Exit::Unavailable,
            format!(
                "port {port} of {}, meant for {whose}, is taken by another process",
                address.ip()
            ),
        )
        .hint(format!(
            "choose another with {option}, or stop what has it (`ss -ltnp 'sport = :{port}'` tells)"
        )),
        _ => Failure::new(
            Exit::Unavailable,
            format!(
                "port {port} of {}, meant for {whose}, cannot be had: {}",
                address.ip(),
                reason(&error)
            ),
        )
        .hint(format!("choose another with {option}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_option_that_changes_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let failure = check(address, "the node", "--node-port").unwrap_err();
        assert_eq!(failure.code, Exit::Unavailable.code());
        assert!(failure.message.contains(&address.port().to_string()), "{failure}");
        assert!(failure.hint.unwrap().contains("--node-port"));
        drop(taken);
        check(address, "the node", "--node-port").unwrap();
    }
}
