//! Filters: closed until exported, VXLAN from members only, nothing to a clusterset address untranslated.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::phrase::*;
use super::{FAMILIES, PodReachability, Ruleset, UNTRANSLATED_CHAIN, set_name};
use crate::Refusal;
use crate::table::{Expression, Register, Verdict};

impl Ruleset {
    pub(super) fn input_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        if let Some(port) = self.vxlan_port {
            for family in FAMILIES {
                // A pod may forge a node's address, but the way back to that address is not the pod's device.
                let mut member = of_family(family);
                member.extend(to_port(UDP, port));
                member.extend(source_in("nodes", family));
                member.push(Expression::SourceBelongsToDevice { to: Register(0) });
                member.push(equals(Register(0), vec![1]));
                member.push(Expression::Verdict(Verdict::Accept));
                rules.push(member);
            }
            let mut stranger = to_port(UDP, port);
            stranger.extend(self.refuse(Refusal::VxlanStranger));
            rules.push(stranger);
        }
        rules.push(vec![
            input_device(Register(0)),
            is_in("tunnels"),
            Expression::Verdict(Verdict::Jump("members_only".to_string())),
        ]);
        for family in FAMILIES {
            let mut control = of_family(family);
            control.extend(source_in("control", family));
            control.push(Expression::Verdict(Verdict::Accept));
            rules.push(control);
        }
        rules.extend(self.new_flow_rules());
        rules
    }

    pub(super) fn forward_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        if let Some(port) = self.vxlan_port {
            // Masqueraded, a pod's packet would reach the other node with this node's address.
            for family in FAMILIES {
                let mut injected = of_family(family);
                injected.extend(to_port(UDP, port));
                injected.extend(destination_in("nodes", family));
                injected.extend(self.refuse(Refusal::VxlanStranger));
                rules.push(injected);
            }
        }
        rules.push(vec![
            input_device(Register(0)),
            is_in("tunnels"),
            Expression::Verdict(Verdict::Jump("members_only".to_string())),
        ]);
        for family in FAMILIES {
            for end in [source_in("remote", family), destination_in("remote", family)] {
                let mut clamp = of_family(family);
                clamp.extend(end);
                clamp.extend(opening_tcp());
                clamp.push(Expression::RouteMss { to: Register(0) });
                clamp.push(Expression::NetworkOrder16 { register: Register(0) });
                clamp.push(Expression::ClampMss { from: Register(0) });
                rules.push(clamp);
            }
        }
        rules.extend(untranslated_rules());
        rules.extend(self.new_flow_rules());
        rules
    }

    /// New flows from other clusters, sent to `admission`.
    pub(super) fn new_flow_rules(&self) -> Vec<Vec<Expression>> {
        if self.reachability == PodReachability::Open {
            return Vec::new();
        }
        FAMILIES
            .into_iter()
            .map(|family| {
                let mut rule = of_family(family);
                rule.extend(source_in("remote", family));
                rule.push(Expression::ConntrackState { to: Register(0) });
                rule.push(mask_word(Register(0), NEW));
                rule.push(not_zero(Register(0)));
                rule.push(Expression::Verdict(Verdict::Goto("admission".to_string())));
                rule
            })
            .collect()
    }

    pub(super) fn admission_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let mut exported = frontend_key(family);
            exported.splice(0..0, of_family(family));
            exported.push(is_in(&set_name("exported", family)));
            exported.push(Expression::Verdict(Verdict::Accept));
            rules.push(exported);
        }
        for family in FAMILIES {
            let mut echo = of_family(family);
            echo.extend(echo_request(family));
            echo.extend(destination_in("echo", family));
            echo.push(Expression::Verdict(Verdict::Accept));
            rules.push(echo);
        }
        for (protocol, refusal) in [(TCP, Refusal::UnexportedTcp), (UDP, Refusal::UnexportedUdp)] {
            let mut rule = transport_is(protocol);
            rule.extend(self.refuse(refusal));
            rules.push(rule);
        }
        for family in FAMILIES {
            let mut rule = echo_request(family);
            rule.extend(self.refuse(Refusal::UnexportedEcho));
            rules.push(rule);
        }
        rules.push(self.refuse(Refusal::UnexportedOther));
        rules
    }

    /// What comes out of a tunnel is from a member, or from a peer's gateway itself.
    pub(super) fn members_only_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            for set in ["remote", "local", "control"] {
                let mut known = of_family(family);
                known.extend(source_in(set, family));
                known.push(Expression::Verdict(Verdict::Return));
                rules.push(known);
            }
        }
        rules.push(self.refuse(Refusal::ForeignSource));
        rules
    }

    /// Counted, copied to the log, dropped.
    pub(super) fn refuse(&self, refusal: Refusal) -> Vec<Expression> {
        let mut expressions = self.note(refusal);
        expressions.push(Expression::Verdict(Verdict::Drop));
        expressions
    }

    /// Counted, copied to the log, and the client told.
    pub(super) fn reject_rules(&self, refusal: Refusal) -> Vec<Vec<Expression>> {
        let mut tcp = transport_is(TCP);
        tcp.push(Expression::RejectTcpReset);
        vec![self.note(refusal), tcp, vec![Expression::RejectPortUnreachable]]
    }

    pub(super) fn note(&self, refusal: Refusal) -> Vec<Expression> {
        let mut expressions = vec![Expression::Count(refusal.name().to_string())];
        if let Some(group) = self.log_group {
            expressions.push(Expression::Log { prefix: refusal.name().to_string(), group });
        }
        expressions
    }
}

pub(super) fn untranslated_rules() -> Vec<Vec<Expression>> {
    FAMILIES
        .into_iter()
        .map(|family| {
            let mut rule = of_family(family);
            rule.extend(destination_in("clusterset", family));
            rule.push(Expression::Verdict(Verdict::Goto(UNTRANSLATED_CHAIN.to_string())));
            rule
        })
        .collect()
}
