//! A network namespace for one test: the test's own program is started again inside, for that one test, for a process
//! with threads cannot leave its user namespace.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{alarm, getgid, getuid, write};

/// Names the test that is to be run inside.
const INSIDE: &str = "TOMBOLO_SANDBOXED_TEST";
/// A test that hangs is ended after so many seconds.
const LIMIT: u32 = 120;

/// Runs the body inside, or starts the process that does.
pub(crate) fn run(test: &str, body: impl FnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        set_up("lo");
        body();
        return;
    }
    let program = std::env::current_exe().expect("the test program");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INSIDE, test).stdin(Stdio::null());
    enter_namespaces(&mut command);
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot start a test in namespaces: {error}; user namespaces must be allowed (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)")
    });
    let inner = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "inside the namespaces ({}):\n{inner}", output.status);
    assert!(inner.contains("1 passed"), "the test was not found inside:\n{inner}");
}

#[expect(unsafe_code, reason = "new namespaces must be entered between fork and exec")]
fn enter_namespaces(command: &mut Command) {
    let path = |path: &str| CString::new(path).expect("no zero in it");
    let files = [
        (path("/proc/self/setgroups"), "deny".to_owned()),
        (path("/proc/self/uid_map"), format!("0 {} 1", getuid())),
        (path("/proc/self/gid_map"), format!("0 {} 1", getgid())),
    ];
    let enter = move || -> std::io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        alarm::set(LIMIT);
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        for (path, content) in &files {
            let file = open(path.as_c_str(), OFlag::O_WRONLY, Mode::empty())?;
            write(&file, content.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on memory prepared before; nothing is allocated.
    unsafe { command.pre_exec(enter) };
}

fn request(device: &str, flags: libc::c_short) -> libc::ifreq {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } }
}

/// Brings a device up.
#[expect(unsafe_code, reason = "flags of a device are set by ioctl")]
pub(crate) fn set_up(device: &str) {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    let request = request(device, (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short);
    // SAFETY: the request is a whole ifreq that lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    assert_eq!(result, 0, "{device}: {}", std::io::Error::last_os_error());
}

/// Gives the device before the colon one more address, as somebody else would who is not Tombolo.
#[expect(unsafe_code, reason = "an address is set by ioctl")]
pub(crate) fn add_address(alias: &str, address: [u8; 4]) {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    // Its mask too, or the whole class B network would be local.
    for (kind, octets) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, [255; 4])] {
        let mut request = request(alias, 0);
        let mut data = [0; 14];
        for (to, from) in data[2..6].iter_mut().zip(octets) {
            *to = from.cast_signed() as libc::c_char;
        }
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
        // SAFETY: the request is a whole ifreq that lives through the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), kind, &request) };
        assert_eq!(result, 0, "{alias}: {}", std::io::Error::last_os_error());
    }
}

/// A tunnel device that is up; it goes when the file is closed, as a gateway's does with its process.
#[expect(unsafe_code, reason = "a tunnel device is made by ioctl")]
pub(crate) fn tunnel(device: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    let request = request(device, (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short);
    // SAFETY: the request is a whole ifreq that lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) };
    assert_eq!(result, 0, "{device}: {}", std::io::Error::last_os_error());
    set_up(device);
    file
}

/// The size of the packets that this host would send there, as the route says; none while no route leads there.
#[expect(unsafe_code, reason = "the size of a connected socket's path is read by getsockopt")]
pub(crate) fn path_mtu(destination: IpAddr) -> Option<i32> {
    let (any, level, name) = match destination {
        IpAddr::V4(_) => ("0.0.0.0", libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => ("::", libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    socket.connect((destination, 9)).ok()?;
    let mut mtu: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both point at values that live through the call, and the length is that of the first.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
    assert_eq!(result, 0, "{destination}: {}", std::io::Error::last_os_error());
    Some(mtu)
}
