//! The closed list of settings that are not ours and that we may change. Each old value is recorded and restored.

use alloc::format;
use alloc::string::String;

use crate::{DeviceName, InvalidDeviceName};

/// One kernel setting (sysctl). Its value in [`crate::State`] is a small number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// `net.ipv4.ip_forward`: 1 lets the host forward.
    ForwardIpv4,
    /// `net.ipv6.conf.all.forwarding`: 1 lets the host forward.
    ForwardIpv6,
    /// `net.ipv4.fib_multipath_hash_policy`: 1 spreads flows between the same two hosts over next hops; 0 does not.
    SpreadIpv4,
    /// `net.ipv6.fib_multipath_hash_policy`.
    SpreadIpv6,
    /// `net.ipv4.conf.<device>.rp_filter`: 2 (loose) accepts a source whose way back is another device.
    ReversePath(DeviceName),
}

/// Loose reverse-path filtering: the source must be reachable, by whichever device.
pub const LOOSE: u8 = 2;

impl Setting {
    /// Path below `/proc/sys`.
    pub fn path(&self) -> String {
        match self {
            Self::ForwardIpv4 => "net/ipv4/ip_forward".into(),
            Self::ForwardIpv6 => "net/ipv6/conf/all/forwarding".into(),
            Self::SpreadIpv4 => "net/ipv4/fib_multipath_hash_policy".into(),
            Self::SpreadIpv6 => "net/ipv6/fib_multipath_hash_policy".into(),
            Self::ReversePath(device) => format!("net/ipv4/conf/{device}/rp_filter"),
        }
    }

    /// The setting at a path below `/proc/sys`; none when it is not in the list.
    pub fn from_path(path: &str) -> Result<Option<Self>, InvalidDeviceName> {
        Ok(Some(match path {
            "net/ipv4/ip_forward" => Self::ForwardIpv4,
            "net/ipv6/conf/all/forwarding" => Self::ForwardIpv6,
            "net/ipv4/fib_multipath_hash_policy" => Self::SpreadIpv4,
            "net/ipv6/fib_multipath_hash_policy" => Self::SpreadIpv6,
            _ => match path.strip_prefix("net/ipv4/conf/").and_then(|rest| rest.strip_suffix("/rp_filter")) {
                Some(device) => Self::ReversePath(DeviceName::new(device)?),
                None => return Ok(None),
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_found_again_by_its_path_and_no_other_is() {
        let device = DeviceName::new("eth0.7").unwrap();
        for setting in [
            Setting::ForwardIpv4,
            Setting::ForwardIpv6,
            Setting::SpreadIpv4,
            Setting::SpreadIpv6,
            Setting::ReversePath(device),
        ] {
            assert_eq!(Setting::from_path(&setting.path()), Ok(Some(setting)));
        }
        assert_eq!(Setting::from_path("kernel/panic"), Ok(None));
        assert!(Setting::from_path("net/ipv4/conf/../rp_filter").is_err());
        assert!(Setting::from_path("net/ipv4/conf/../../x/rp_filter").is_err());
    }
}
