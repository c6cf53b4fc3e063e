//! The gateway part: TUN, UDP and boringtun around gateway-core.
