//! [`DeviceName`]: the name of a network device.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

/// What the kernel can hold of a name: `IFNAMSIZ` less the zero at its end.
pub const LONGEST_NAME: usize = 15;

/// A device name as the kernel accepts it: 1 to 15 printable ASCII characters, without `/`, `:` and spaces, and
/// neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a device name: 1 to 15 printable characters without '/', ':' and spaces")]
pub struct InvalidDeviceName(String);

impl DeviceName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, InvalidDeviceName> {
        let fits = !name.is_empty() && name.len() <= LONGEST_NAME && name != "." && name != "..";
        if fits && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':') {
            Ok(Self(name.to_string()))
        } else {
            Err(InvalidDeviceName(name.chars().take(40).collect()))
        }
    }

    /// The loopback device, which every network namespace has.
    pub fn loopback() -> Self {
        Self("lo".to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = InvalidDeviceName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_are_refused_here() {
        for name in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "ü"] {
            assert!(DeviceName::new(name).is_err(), "{name}");
        }
        for name in ["lo", "eth0", "tombolo", "cali12345@if", "fifteen-letters"] {
            assert!(DeviceName::new(name).is_ok(), "{name}");
        }
    }
}
