//! [`Change`]: one step from an observed state to a wanted one.

use core::net::IpAddr;

use crate::{
    Address, Backend, DeviceName, Element, ForwardingKey, Frontend, Group, GroupId, Mac, NeighbourKey, Nexthop,
    NexthopId, Route, RouteKey, Rule, Service, Setting, Table, Vxlan,
};

/// One step. `Set…` makes the thing or brings it to the value given, in one step where the kernel can (make before
/// break).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes our table, or puts these chains in place of those there; its sets keep their elements.
    SetTable(Table),
    /// Takes the table away, with all elements and services.
    RemoveTable,
    AddElement(Element),
    RemoveElement(Element),
    /// Brings one frontend from the slots it had to those it shall have; only slots that differ are touched.
    SetService {
        frontend: Frontend,
        before: Option<Service>,
        after: Option<Service>,
    },
    /// Ends the tracked UDP flows of a frontend to a backend that left it: they would go on to it for ever. With the
    /// frontend's own address as backend: those that began before anything answered there, and were not translated.
    ForgetFlows {
        frontend: Frontend,
        backend: Backend,
    },
    /// Writes a setting, after its old value is recorded.
    SetSetting(Setting, u8),
    /// Puts the recorded old value back.
    RestoreSetting(Setting),
    AddLink(DeviceName, Vxlan),
    SetMtu(DeviceName, u32),
    RemoveLink(DeviceName),
    AddAddress(Address),
    RemoveAddress(Address),
    SetNeighbour(NeighbourKey, Mac),
    RemoveNeighbour(NeighbourKey),
    SetForwarding(ForwardingKey, IpAddr),
    RemoveForwarding(ForwardingKey),
    SetNexthop(NexthopId, Nexthop),
    RemoveNexthop(NexthopId),
    SetGroup(GroupId, Group),
    RemoveGroup(GroupId),
    SetRoute(RouteKey, Route),
    RemoveRoute(RouteKey),
    AddRule(Rule),
    RemoveRule(Rule),
}

impl Change {
    /// Whether this is a change of our nftables table. Neighbouring ones go into one transaction.
    pub const fn is_of_table(&self) -> bool {
        matches!(
            self,
            Self::SetTable(_)
                | Self::RemoveTable
                | Self::AddElement(_)
                | Self::RemoveElement(_)
                | Self::SetService { .. }
        )
    }
}
