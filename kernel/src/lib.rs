//! Netlink: links, routes, nexthops, rules, nftables, conntrack, as differences.
