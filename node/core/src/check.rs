//! When an endpoint of a plain host counts as ready: the annotation [`api::names::CHECK`], and what its results mean.

use alloc::string::{String, ToString};
use core::str::FromStr;

/// How an endpoint is asked. Without a port it is asked on the slice's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It takes a TCP connection.
    Tcp { port: Option<u16> },
    /// It answers a GET with a status from 200 to 399, as Kubernetes' probes take it.
    Http { port: Option<u16>, path: String },
}

/// Why a text is no check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidCheck(String);

impl core::fmt::Display for InvalidCheck {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "'{}' is not a check: write tcp, tcp:8080, http:/healthz or http:8080/healthz", self.0)
    }
}

/// A longer path is a mistake, and the request has to fit one packet.
const LONGEST_PATH: usize = 1024;

impl FromStr for Check {
    type Err = InvalidCheck;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCheck(text.chars().take(80).collect());
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let (port, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let port = match port {
            "" => None,
            port => Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?),
        };
        match kind {
            "tcp" if path.is_empty() => Ok(Self::Tcp { port }),
            // Printable ASCII: it is put into a request line as it is.
            "http" if path.len() <= LONGEST_PATH && path.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self::Http { port, path: if path.is_empty() { "/".to_string() } else { path.to_string() } })
            }
            _ => Err(invalid()),
        }
    }
}

/// Checks in a row that must fail before a ready endpoint is not: one packet may be lost.
const FAILURES: u8 = 2;

/// What the checks of one endpoint come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    ready: Option<bool>,
    failed: u8,
}

impl Readiness {
    /// Takes a result; says whether the endpoint is ready now. The first result counts at once, and so does a good one.
    pub fn take(&mut self, passed: bool) -> bool {
        self.failed = if passed { 0 } else { self.failed.saturating_add(1) };
        let ready = passed || (self.ready == Some(true) && self.failed < FAILURES);
        self.ready = Some(ready);
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_read_as_the_documentation_writes_it_and_anything_else_is_refused() {
        let read = |text: &str| text.parse::<Check>();
        assert_eq!(read("tcp"), Ok(Check::Tcp { port: None }));
        assert_eq!(read("tcp:8080"), Ok(Check::Tcp { port: Some(8080) }));
        assert_eq!(read("http:/healthz"), Ok(Check::Http { port: None, path: "/healthz".into() }));
        assert_eq!(read("http:81/a?b=c:d"), Ok(Check::Http { port: Some(81), path: "/a?b=c:d".into() }));
        for bad in ["", "udp", "tcp:0", "tcp:70000", "tcp:/path", "http:x/", "http:/a b", "http:/\r\nHost: x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_lost_check_does_not_end_readiness_and_the_first_good_one_brings_it_back() {
        let mut readiness = Readiness::default();
        let results = [false, true, false, true, false, false, true];
        assert_eq!(results.map(|passed| readiness.take(passed)), [false, true, true, true, true, false, true]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_and_a_path_can_never_end_the_request_line(text in ".{0,80}") {
            for text in [text.clone(), alloc::format!("http:{text}"), alloc::format!("tcp:{text}")] {
                if let Ok(Check::Http { path, .. }) = text.parse() {
                    proptest::prop_assert!(path.starts_with('/') && !path.contains(['\r', '\n', ' ']));
                }
            }
        }
    }
}
