//! What can go wrong, and what to look at then.

use nix::errno::Errno;

/// Why the kernel was not brought to what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{object}: {errno}{}; {}", said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default(), advice(*.errno))]
    Refused {
        /// What was to be made, changed, removed or read.
        object: String,
        errno: Errno,
        /// The kernel's own words, where it has some.
        said: Option<String>,
    },
    /// A device that does not exist now.
    #[error(
        "{object}: there is no device '{device}'; it may have gone with its process, and is used again when it is back"
    )]
    NoDevice { object: String, device: String },
    /// A value the kernel has no place for.
    #[error("{object}: {reason}")]
    Invalid { object: String, reason: String },
    /// A file below `/proc/sys`, or our own record of settings.
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    /// An answer of the kernel that ends in the middle, or does not come.
    #[error("netlink: {0}; if it lasts, report it with the kernel's version")]
    Netlink(String),
}

impl Error {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The same refusal, of this object.
    pub(crate) fn of(self, name: impl Into<String>) -> Self {
        match self {
            Self::Refused { errno, said, .. } => Self::Refused { object: name.into(), errno, said },
            other => other,
        }
    }
}

/// What an operator should look at.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => "this needs CAP_NET_ADMIN in the network namespace",
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
            "the kernel lacks it: load or build vxlan, nf_tables (inet, nat, fib, numgen, hash), nf_conntrack, IPv6"
        }
        Errno::ENOENT | Errno::ESRCH => {
            "something it leans on is not there, or the kernel lacks it (vxlan, nf_tables with nat, fib, numgen, hash)"
        }
        Errno::ENODEV => "the device is gone",
        Errno::ENETDOWN => "the device is down: bring it up",
        Errno::ENETUNREACH => "the next hop cannot be reached by that device",
        Errno::EEXIST => "something else has that place: see `ip -d link`, `ip rule`, `ip route show table all`",
        Errno::EADDRNOTAVAIL => "the address is not one of this host",
        Errno::ENOBUFS | Errno::EMSGSIZE => {
            "the socket buffer is too small: see net.core.wmem_max and net.core.rmem_max"
        }
        Errno::ENOMEM | Errno::ENOSPC => "the kernel is out of memory or of room for it",
        _ => "see the kernel's log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_object_and_says_what_to_look_at() {
        let error = Error::Refused { object: "link tombolo".into(), errno: Errno::EPERM, said: None };
        let text = error.to_string();
        assert!(text.contains("link tombolo") && text.contains("CAP_NET_ADMIN"), "{text}");
    }
}
