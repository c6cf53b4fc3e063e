//! The control relay: controllers of two clusters speak to each other through the gateways.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::names::ports::CONTROL_RELAY;
use netns_tests::world_test;

use crate::end::LIMIT;
use crate::{Outer, prepared, started};

#[test]
fn each_controller_gets_a_line_to_the_peers_and_bytes_pass_both_ways() {
    world_test(|world| {
        let (mut one, mut other) = prepared(world, Outer::V6, [1, 1])?;
        // Amber's controller is on a unix socket, as on a plain host; birch's on TCP.
        std::fs::create_dir_all(one.node.run_folder().join("controller"))?;
        let ambers = UnixListener::bind(one.node.run_folder().join("controller").join("socket"))?;
        one.controllers = vec!["unix:/run/controller/socket".to_owned()];
        let births = other.node.run(|| TcpListener::bind("127.0.0.1:7443"))??;
        other.controllers = vec!["127.0.0.1:7443".to_owned()];
        let birch = std::thread::spawn(move || serve_birch(&births));
        let (one, other) = started(one, other)?;

        let (mut line, amber_heard) = loop {
            let (stream, _) = ambers.accept()?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut first = String::new();
            reader.read_line(&mut first)?;
            if first.starts_with("TOMBOLO IMPORT") {
                break ((stream, reader), first);
            }
        };
        ensure!(amber_heard == "TOMBOLO IMPORT birch\n", "{amber_heard}");
        line.0.write_all(b"what do you export?\n")?;
        let mut answer = String::new();
        line.1.read_line(&mut answer)?;
        ensure!(answer == "everything\n", "{answer}");
        birch.join().map_err(|_| anyhow::anyhow!("birch's controller panicked"))??;

        // Only a peer's control address is let in: birch's node calls from another of its addresses.
        let relay = SocketAddr::new(one.control_address()?.into(), CONTROL_RELAY);
        other.node.run(|| {
            let stream = TcpStream::connect_timeout(&relay, Duration::from_millis(500));
            if let Ok(mut stream) = stream {
                // It may be taken for a moment; it must be closed without a byte.
                let _ = stream.set_read_timeout(Some(LIMIT));
                let mut byte = [0];
                assert!(!matches!(stream.read(&mut byte), Ok(1..)));
            }
        })?;
        Ok(())
    });
}

/// Answers the one conversation that comes without the preamble: the peer's.
fn serve_birch(listener: &TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone()?);
        // Connections of birch's own gateway begin with whom it has on the line; amber's controller says nothing.
        if reader.read_line(&mut line).context("birch's controller listens").is_ok() && line == "what do you export?\n"
        {
            stream.write_all(b"everything\n")?;
            return Ok(());
        }
    }
}
