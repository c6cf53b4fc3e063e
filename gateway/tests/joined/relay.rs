//! The control relay: controllers of two clusters speak to each other through the gateways.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::names::ports::CONTROL_RELAY;
use netns_tests::world_test;
use socket2::{Domain, Socket, Type};

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
        let birchs = other.node.run(|| TcpListener::bind("127.0.0.1:7443"))??;
        other.controllers = vec!["127.0.0.1:7443".to_owned()];
        std::thread::spawn(move || birchs.incoming().flatten().for_each(answer_question));
        let (lines, calls) = channel();
        std::thread::spawn(move || ambers.incoming().flatten().for_each(|stream| report_call(stream, lines.clone())));
        let (one, other) = started(one, other)?;

        // The peer's controller calls here as well, and says nothing before it is asked: that line is of no use.
        let (first, mut line) = calls.recv_timeout(LIMIT).context("nobody called amber's controller")?;
        ensure!(first == "TOMBOLO IMPORT birch\n", "{first}");
        line.get_mut().write_all(b"what do you export?\n")?;
        let mut answer = String::new();
        line.read_line(&mut answer)?;
        ensure!(answer == "everything\n", "{answer}");

        // Only a peer's control address is let in: birch's node calls from another of its addresses.
        let relay = SocketAddr::new(one.control_address()?.into(), CONTROL_RELAY);
        let caller = SocketAddr::new(other.node.infrastructure().v6.into(), 0);
        let connected = other.node.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.bind(&caller.into())?;
            std::io::Result::Ok(socket.connect_timeout(&relay.into(), Duration::from_millis(300)).is_ok())
        })??;
        ensure!(!connected, "a pod's address reached the relay");
        one.wait_for("the refusal", |end| Ok(end.counted("ControlRefused")? > 0))?;
        Ok(())
    });
}

/// A controller that reads the line with which its own gateway begins.
fn report_call(stream: UnixStream, calls: Sender<(String, BufReader<UnixStream>)>) {
    std::thread::spawn(move || -> Result<()> {
        stream.set_read_timeout(Some(LIMIT))?;
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        if reader.read_line(&mut first)? > 0 {
            // The test may be over.
            let _ = calls.send((first, reader));
        }
        Ok(())
    });
}

/// A controller that answers the peer's question, on whichever connection it comes.
fn answer_question(mut stream: TcpStream) {
    std::thread::spawn(move || -> Result<()> {
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        if line == "what do you export?\n" {
            stream.write_all(b"everything\n")?;
        }
        Ok(())
    });
}
