//! A network namespace for one test, and more of them joined to it: pods.
//!
//! A process with threads cannot leave its user namespace, and a test always has threads. So a test starts its own
//! program again, for that one test; the new process enters new namespaces before it has any thread.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{alarm, getgid, gettid, getuid, write};

use crate::message::{Message, flag, octets, read_u32};
use crate::socket::{ROUTE, Socket};

/// Names the test that is to be run inside.
const INSIDE: &str = "TOMBOLO_SANDBOXED_TEST";
/// A test that hangs is ended after so many seconds.
const LIMIT: u32 = 120;
/// The kernel's thread comes to a new link within a second, on a busy machine later.
const USED_LIMIT: Duration = Duration::from_secs(10);

/// A test whose body runs in a network namespace of its own, with loopback up; or, `without privilege`, in that of the
/// whole machine, as somebody who may change nothing in it.
macro_rules! sandboxed {
    (fn $name:ident() $body:block) => {
        sandboxed! { @ true, $name, $body }
    };
    (without privilege fn $name:ident() $body:block) => {
        sandboxed! { @ false, $name, $body }
    };
    (@ $network:literal, $name:ident, $body:block) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            crate::tests::sandbox::run(path.split_once("::").expect("a crate").1, $network, || $body);
        }
    };
}
pub(crate) use sandboxed;

/// Runs the body inside, or starts the process that does.
pub(crate) fn run(test: &str, own_network: bool, body: impl FnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        if own_network {
            // Addresses that devices give themselves are there at once, or lists would differ from moment to moment.
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").expect("a setting of this namespace");
            Host::new().up("lo");
        }
        body();
        return;
    }
    let program = std::env::current_exe().expect("the test program");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INSIDE, test).stdin(Stdio::null());
    enter_namespaces(&mut command, own_network);
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot start a test in namespaces: {error}; user namespaces must be allowed (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)")
    });
    let inner = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "inside the namespaces ({}):\n{inner}", output.status);
    assert!(inner.contains("1 passed"), "the test was not found inside:\n{inner}");
}

#[expect(unsafe_code, reason = "new namespaces must be entered between fork and exec")]
fn enter_namespaces(command: &mut Command, own_network: bool) {
    let network = if own_network { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    let users = format!("0 {} 1", getuid());
    let groups = format!("0 {} 1", getgid());
    let path = |path: &str| CString::new(path).expect("no zero in it");
    let files = [
        (path("/proc/self/setgroups"), "deny".to_owned()),
        (path("/proc/self/uid_map"), users),
        (path("/proc/self/gid_map"), groups),
    ];
    let enter = move || -> std::io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        alarm::set(LIMIT);
        unshare(CloneFlags::CLONE_NEWUSER | network)?;
        for (path, content) in &files {
            let file = open(path.as_c_str(), OFlag::O_WRONLY, Mode::empty())?;
            write(&file, content.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on memory prepared before; nothing is allocated.
    unsafe { command.pre_exec(enter) };
}

/// The namespace of the calling thread.
pub(crate) struct Host(Socket);

impl Host {
    pub(crate) fn new() -> Self {
        Self(Socket::open(ROUTE).expect("a netlink socket"))
    }

    pub(crate) fn request(&mut self, message: Message) {
        self.0.request(message).expect("the kernel agrees");
    }

    pub(crate) fn index(&mut self, device: &str) -> u32 {
        crate::device::index_of(&mut self.0, &device.parse().expect("a device name"), "test").expect("the device")
    }

    pub(crate) fn up(&mut self, device: &str) {
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&self.index(device).to_ne_bytes());
        fixed[8..12].copy_from_slice(&1u32.to_ne_bytes());
        fixed[12..16].copy_from_slice(&1u32.to_ne_bytes());
        self.request(Message::new(19, 0, &fixed));
    }

    /// Waits for what the kernel does a moment later in a thread of its own: once both ends of a device are up it takes
    /// note of the carrier, and makes the routes of its IPv6 addresses.
    pub(crate) fn wait_until_used(&mut self, device: &str, address: Ipv6Addr) {
        const RUNNING: u32 = 0x40;
        const LOCAL: u8 = 2;
        let given_up = Instant::now() + USED_LIMIT;
        loop {
            let mut link = Message::new(18, 0, &[0; 16]);
            link.put_text(3, device);
            let mut route = Message::new(26, 0, &[10, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            route.put_address(1, address.into());
            let flags = self.0.get(link, |link| read_u32(link.payload, 8)).expect("the device");
            // Refused as long as there is no route at all.
            let kind = self.0.get(route, |route| route.payload.get(7).copied()).ok().flatten();
            if flags.is_some_and(|flags| flags & RUNNING != 0) && kind == Some(LOCAL) {
                return;
            }
            assert!(Instant::now() < given_up, "{device} or {address} is not in use after {USED_LIMIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn remove_device(&mut self, device: &str) {
        let mut message = Message::new(17, 0, &[0; 16]);
        message.put_text(3, device);
        self.request(message);
    }

    pub(crate) fn address(&mut self, device: &str, address: IpAddr, length: u8) {
        let family = if address.is_ipv4() { 2 } else { 10 };
        let mut fixed = vec![family, length, 0, 0];
        fixed.extend_from_slice(&self.index(device).to_ne_bytes());
        let mut message = Message::new(20, flag::CREATE, &fixed);
        // Usable at once.
        message.put_address(2, address).put_address(1, address).put_u32(8, 0x02);
        self.request(message);
    }

    /// A route in the main table; to everything when the length is zero.
    pub(crate) fn route(&mut self, to: IpAddr, length: u8, via: IpAddr) {
        let family = if to.is_ipv4() { 2 } else { 10 };
        let mut message = Message::new(24, flag::CREATE, &[family, length, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        if length > 0 {
            message.put(1, &octets(to));
        }
        message.put_address(5, via);
        self.request(message);
    }

    /// A pair of devices, the second in the namespace of that thread.
    pub(crate) fn veth(&mut self, here: &str, there: &str, thread: u32) {
        let mut message = Message::new(16, flag::CREATE | flag::EXCLUSIVE, &[0; 16]);
        message.put_text(3, here);
        message.nest(18, |info| {
            info.put(1, b"veth").nest(2, |data| {
                data.nest(1, |peer| {
                    peer.put_fixed(&[0; 16]);
                    peer.put_text(3, there).put_u32(19, thread);
                });
            });
        });
        self.request(message);
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// A namespace with one device, whose default route is the test's own namespace.
pub(crate) struct Pod {
    tasks: mpsc::Sender<Task>,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    /// Its device's other end, in the test's namespace.
    pub(crate) device: String,
}

impl Pod {
    /// The pod of that number has the addresses `10.<net>.<number>.2` and `fd00:<net>:<number>::2`.
    pub(crate) fn new(net: u8, number: u8) -> Self {
        let (tasks, inbox) = mpsc::channel::<Task>();
        let (ready, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ready.send(gettid().as_raw()).expect("the test waits");
            inbox.into_iter().for_each(|task| task());
        });
        let thread = thread.recv().expect("the pod's thread").cast_unsigned();
        let device = format!("pod{net}-{number}");
        let four = |last| Ipv4Addr::new(10, net, number, last);
        let six = |last| Ipv6Addr::new(0xfd00, net.into(), number.into(), 0, 0, 0, 0, last);
        let mut host = Host::new();
        host.veth(&device, "eth0", thread);
        host.up(&device);
        host.address(&device, four(1).into(), 24);
        host.address(&device, six(1).into(), 64);
        let pod = Self { tasks, ipv4: four(2), ipv6: six(2), device };
        let (gateway4, gateway6) = (four(1), six(1));
        let (ipv4, ipv6) = (pod.ipv4, pod.ipv6);
        pod.run(move || {
            let mut inside = Host::new();
            inside.up("lo");
            inside.up("eth0");
            inside.address("eth0", ipv4.into(), 24);
            inside.address("eth0", ipv6.into(), 64);
            inside.route(Ipv4Addr::UNSPECIFIED.into(), 0, gateway4.into());
            inside.route(Ipv6Addr::UNSPECIFIED.into(), 0, gateway6.into());
            inside.wait_until_used("eth0", ipv6);
        });
        host.wait_until_used(&pod.device, gateway6);
        pod
    }

    /// Runs something in the pod's namespace, and waits for it. Threads it starts stay in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = mpsc::channel();
        self.tasks.send(Box::new(move || drop(done.send(task())))).expect("the pod's thread");
        answer.recv().expect("what was run in a pod failed; its message is above")
    }

    pub(crate) fn address(&self, ipv4: bool) -> IpAddr {
        if ipv4 { self.ipv4.into() } else { self.ipv6.into() }
    }
}

/// The value of a setting of this namespace.
pub(crate) fn setting(path: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{path}")).expect("a setting").trim().to_owned()
}
