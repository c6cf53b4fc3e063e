//! What this machine allows, as a table, with a remedy for everything it does not.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use kubernetes::find_go;
use nlink::netlink::link::{BridgeLink, VethLink, VxlanLink};
use nlink::netlink::nexthop::{NexthopBuilder, NexthopGroupBuilder};
use nlink::netlink::nftables::{BaseChain, CtState, Family, FilterHook, NatHook, Priority, Rule};
use nlink::netlink::tc::{NetemConfig, TbfConfig};
use nlink::{Bytes, Rate};

use crate::host::Host;
use crate::impair::{chain, replace_table};
use crate::sandbox::is_inside;
use crate::world::World;

/// Tombolo watches one folder in each process, and a desktop has its own watchers beside ours.
const ENOUGH_WATCHERS: u64 = 64;
/// A world of three clusters has some twenty network namespaces, and several tests run at once.
const ENOUGH_NAMESPACES: u64 = 500;

/// One line of the table.
struct Check {
    name: &'static str,
    /// Whether `make test` or `make demo` fails without it.
    needed: bool,
    outcome: Result<String>,
    remedy: &'static str,
}

/// Which lines are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    All,
    /// Only what is missing and needed: before a run of the tests.
    Missing,
}

/// Prints the table. Fails when something is missing that tests or the demo need.
///
/// Runs its program a second time in a sandbox; where that cannot be made, the first part alone tells why.
pub fn run(lines: Lines) -> Result<ExitCode> {
    if is_inside() {
        return Ok(print(&kernel_checks(), lines));
    }
    let first = print(&machine_checks(), lines);
    let second = crate::world::inside(|| ExitCode::FAILURE);
    match second {
        Ok(code) if first == ExitCode::SUCCESS => Ok(code),
        Ok(_) => Ok(first),
        Err(error) => {
            println!("✗ sandbox                        {error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn print(checks: &[Check], lines: Lines) -> ExitCode {
    for check in checks {
        match &check.outcome {
            Ok(_) if lines == Lines::Missing => {}
            Err(_) if lines == Lines::Missing && !check.needed => {}
            Ok(detail) => println!("✓ {:<30} {detail}", check.name),
            Err(error) => {
                let weight = if check.needed { "" } else { " (not needed by tests and demo)" };
                println!("✗ {:<30} {error:#}{weight}\n  {:<30} → {}", check.name, "", check.remedy);
            }
        }
    }
    let missing = checks.iter().any(|check| check.needed && check.outcome.is_err());
    if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn machine_checks() -> Vec<Check> {
    vec![
        Check {
            name: "user namespaces",
            needed: true,
            outcome: user_namespaces(),
            remedy: "sysctl user.max_user_namespaces=10000; on Debian before 11 kernel.unprivileged_userns_clone=1; \
                     on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container run it privileged",
        },
        Check {
            name: "network namespaces",
            needed: true,
            outcome: at_least("/proc/sys/user/max_net_namespaces", ENOUGH_NAMESPACES),
            remedy: "sysctl user.max_net_namespaces=10000",
        },
        Check {
            name: "file watchers (inotify)",
            needed: true,
            outcome: at_least("/proc/sys/fs/inotify/max_user_instances", ENOUGH_WATCHERS),
            remedy: "sysctl fs.inotify.max_user_instances=128",
        },
        Check {
            name: "Go, for real peers",
            needed: true,
            outcome: find_go().map(|go| go.display().to_string()).context("no `go` on the path"),
            remedy: "install Go 1.26 or later: https://go.dev/dl; only `make test` needs it, to build wireguard-go and Kubernetes",
        },
        Check {
            name: "nft, for evidence",
            needed: false,
            outcome: find("nft"),
            remedy: "apt install nftables, to see rules when a test fails",
        },
        Check {
            name: "nsenter, to step in",
            needed: false,
            outcome: find("nsenter"),
            remedy: "apt install util-linux",
        },
    ]
}

fn kernel_checks() -> Vec<Check> {
    let host = World::create().map(|world| world.internet().clone());
    let check = |name, needed, remedy, probe: fn(&Host) -> Result<()>| {
        let outcome = match &host {
            Ok(host) => probe(host).map(|()| String::new()),
            Err(error) => Err(anyhow::anyhow!("no namespace to try it in: {error:#}")),
        };
        Check { name, needed, outcome, remedy }
    };
    vec![
        check("namespace with own mounts", true, "see user namespaces", |host| host.run(|| ())),
        check("IPv6", true, "boot without ipv6.disable=1", |host| {
            host.setting("net/ipv6/conf/all/forwarding").map(|_| ())
        }),
        check("veth", true, "modprobe veth (CONFIG_VETH)", |host| {
            host.links("veth", async |links| links.add_link(VethLink::new("one", "other")).await)
        }),
        check("bridge", true, "modprobe bridge (CONFIG_BRIDGE)", |host| {
            host.links("bridge", async |links| links.add_link(BridgeLink::new("bridge")).await)
        }),
        check("vxlan", true, "modprobe vxlan (CONFIG_VXLAN)", |host| {
            let vxlan = VxlanLink::new("vxlan", 7).port(4790);
            host.links("vxlan", async |links| links.add_link(vxlan).await)
        }),
        check(
            "tun with several queues",
            true,
            "modprobe tun (CONFIG_TUN); chmod 0666 /dev/net/tun, as udev does",
            |host| host.run(tun)?,
        ),
        check("nftables", true, "modprobe nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)", |host| {
            let base = BaseChain::filter(FilterHook::Forward, Priority::Filter);
            replace_table(host, "probe", Family::Inet, vec![chain("probe", Family::Inet, "probe", base)?], vec![])
        }),
        check("nftables on bridges", true, "modprobe nf_tables_bridge (CONFIG_NF_TABLES_BRIDGE)", |host| {
            let base = BaseChain::filter(FilterHook::Postrouting, Priority::Filter);
            replace_table(host, "probe", Family::Bridge, vec![chain("probe", Family::Bridge, "probe", base)?], vec![])
        }),
        check("connection tracking", true, "modprobe nf_conntrack nft_ct (CONFIG_NFT_CT)", |host| {
            let base = BaseChain::filter(FilterHook::Forward, Priority::Filter);
            let rule = Rule::new("probe", "probe").match_ct_state(CtState::INVALID).drop();
            replace_table(host, "probe", Family::Inet, vec![chain("probe", Family::Inet, "probe", base)?], vec![rule])
        }),
        check("address translation", true, "modprobe nft_nat nft_masq (CONFIG_NFT_NAT, CONFIG_NFT_MASQ)", |host| {
            let base = BaseChain::nat(NatHook::Postrouting, Priority::SrcNat);
            let rule = Rule::new("probe", "probe").masquerade();
            replace_table(host, "probe", Family::Inet, vec![chain("probe", Family::Inet, "probe", base)?], vec![rule])
        }),
        check("nexthop groups", true, "kernel 5.3 or later", nexthops),
        check("rate limits (tbf)", true, "modprobe sch_tbf (CONFIG_NET_SCH_TBF)", |host| {
            let bucket = TbfConfig::new().rate(Rate::mbit(1)).burst(Bytes::new(10_000)).limit(Bytes::new(10_000));
            host.links("tbf", async |links| links.replace_qdisc("one", bucket).await)
        }),
        check("delay (netem)", false, "modprobe sch_netem (CONFIG_NET_SCH_NETEM)", |host| {
            let netem = NetemConfig::new().delay(std::time::Duration::from_millis(1));
            host.links("netem", async |links| links.replace_qdisc("other", netem).await)
        }),
    ]
}

fn user_namespaces() -> Result<String> {
    let detail = at_least("/proc/sys/user/max_user_namespaces", 1)?;
    // Each exists on the distributions that have it only.
    for (file, refuses) in [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ] {
        let value = fs::read_to_string(file).unwrap_or_default();
        ensure!(value.trim() != refuses || nix::unistd::geteuid().is_root(), "{file} is {refuses}");
    }
    Ok(detail)
}

fn at_least(file: &str, enough: u64) -> Result<String> {
    let value = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let value: u64 = value.trim().parse().with_context(|| format!("{file} is {value:?}"))?;
    ensure!(value >= enough, "{file} is {value}, fewer than {enough}");
    Ok(format!("at most {value}"))
}

fn find(program: &str) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An administrator's programs are not on every user's path.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file());
    found.map(|file| file.display().to_string()).with_context(|| format!("no `{program}` on the path"))
}

fn nexthops(host: &Host) -> Result<()> {
    host.links("nexthop group", async |links| {
        links.set_link_up("one").await?;
        links.set_link_up("other").await?;
        links.add_nexthop(NexthopBuilder::new(71).dev("one")).await?;
        links.add_nexthop_group(NexthopGroupBuilder::new(72).multipath().member(71, 1)).await
    })
}

#[expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]
fn tun() -> Result<()> {
    use std::os::fd::AsRawFd;
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    // SAFETY: ifreq is a plain C struct for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"probe") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as i16;
    // SAFETY: the descriptor is open and the request lives through the call.
    unsafe { set_interface(device.as_raw_fd(), &raw const request) }.context("making a TUN device")?;
    Ok(())
}
