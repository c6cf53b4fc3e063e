//! [`Tun`]: the inside of a lane, a TUN device. It is ours from making to closing and goes away with the process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use gateway_core::{Arena, Outgoing};
use ipnet::Ipv6Net;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nlink::netlink::addr::Ipv6Address;
use nlink::netlink::route::Ipv6Route;
use nlink::netlink::{Connection, Route};
use nlink::tuntap::{Mode, TunTap};

/// The kernel's queue of packets waiting for us. With the usual 500 one in 25 small packets was lost at 300,000 a
/// second, with this none (datapath.md, section 1).
const QUEUE_PACKETS: u32 = 5_000;

/// How long to wait for the device of a process that was just killed to go away.
const BUSY_LIMIT: Duration = Duration::from_secs(3);
/// Between two tries: the device is gone as soon as the kernel has closed the other's descriptor.
const BUSY_RETRY: Duration = Duration::from_millis(20);

/// A device without packet information or offload header in front of packets.
///
/// The offloads (IFF_VNET_HDR, TUNSETOFFLOAD) belong to [`create`], and their header to [`Tun::read_batch`] and
/// [`Tun::write`]; everything else deals in plain IP packets.
pub(crate) struct Tun {
    device: File,
    name: String,
}

impl Tun {
    /// Makes the device, sets its MTU and queue, and starts it. Needs CAP_NET_ADMIN in this network namespace.
    pub(crate) async fn open(name: &str, mtu: u16) -> Result<Self> {
        let device = create(name).await?;
        let flags = OFlag::from_bits_retain(fcntl(&device, FcntlArg::F_GETFL)?) | OFlag::O_NONBLOCK;
        fcntl(&device, FcntlArg::F_SETFL(flags))?;
        let links = connection()?;
        let configure = async {
            links.set_link_mtu(name, u32::from(mtu)).await?;
            links.set_link_txqlen(name, QUEUE_PACKETS).await?;
            links.set_link_up(name).await
        };
        configure.await.with_context(|| format!("setting up the tunnel device {name}"))?;
        Ok(Self { device, name: name.to_owned() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Gives the device our control address. Only the first lane's has it.
    pub(crate) async fn add_control_address(&self, address: Ipv6Addr) -> Result<()> {
        // Nobody else can be on this link, so there is nothing to detect duplicates of.
        let message = Ipv6Address::new(self.name.as_str(), address, 128).nodad();
        connection()?.add_address(message).await.with_context(|| {
            format!(
                "giving {} the control address {address}: is IPv6 switched off on this host (ipv6.disable=1)?",
                self.name
            )
        })
    }

    /// Routes a peer's control prefix into the tunnel.
    pub(crate) async fn add_control_route(&self, prefix: Ipv6Net) -> Result<()> {
        connection()?
            .replace_route(self.route(prefix))
            .await
            .with_context(|| format!("routing {prefix} to {}", self.name))
    }

    pub(crate) async fn remove_control_route(&self, prefix: Ipv6Net) -> Result<()> {
        let removed = connection()?.del_route_if_exists(self.route(prefix)).await;
        removed.map(|_| ()).with_context(|| format!("removing the route to {prefix} from {}", self.name))
    }

    fn route(&self, prefix: Ipv6Net) -> Ipv6Route {
        Ipv6Route::from_addr(prefix.network(), prefix.prefix_len()).dev(self.name.as_str())
    }

    /// Reads packets until none is waiting or the arena has no room for another. Never waits.
    ///
    /// # Errors
    /// The device is gone or was set down for good.
    pub(crate) fn read_batch(&self, packets: &mut Arena<Outgoing>, piece: usize) -> Result<()> {
        loop {
            let room = packets.room();
            if room.len() < piece {
                return Ok(());
            }
            match (&self.device).read(room) {
                Ok(0) => return Err(anyhow!("the tunnel device {} was closed", self.name)),
                Ok(len) => {
                    if packets.commit(len, Outgoing::default()).is_err() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("reading from the tunnel device {}", self.name));
                }
            }
        }
    }

    /// Hands a packet to the kernel. `false` when it would not have it: the device is down, or memory is short.
    pub(crate) fn write(&self, packet: &[u8]) -> bool {
        loop {
            match (&self.device).write(packet) {
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

fn connection() -> Result<Connection<Route>> {
    Connection::<Route>::new().context("opening a netlink socket")
}

async fn create(name: &str) -> Result<File> {
    let started = tokio::time::Instant::now();
    loop {
        let error = match TunTap::builder().name(name).mode(Mode::Tun).no_pi(true).create() {
            Ok(device) => return Ok(device.into_file()),
            Err(error) => error,
        };
        let busy = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|source| source.raw_os_error() == Some(Errno::EBUSY as i32));
        if !busy || started.elapsed() > BUSY_LIMIT {
            let advice = if busy {
                "another process holds it: is a second gateway running on this host?"
            } else {
                "/dev/net/tun must be there and CAP_NET_ADMIN granted"
            };
            return Err(anyhow!(error)).with_context(|| format!("making the tunnel device {name}: {advice}"));
        }
        tokio::time::sleep(BUSY_RETRY).await;
    }
}
