//! Our nftables table in the kernel: read, made, changed, taken away.

pub(crate) mod element;
pub(crate) mod expression;
pub(crate) mod observe;
pub(crate) mod skeleton;
pub(crate) mod slots;
pub(crate) mod transaction;

use kernel_core::table::NAME;

use crate::message::Message;

/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES` in the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;

// <linux/netfilter/nf_tables.h>
pub(crate) mod kind {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DELETE_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const GET_CHAIN: u16 = 4;
    pub(crate) const DELETE_CHAIN: u16 = 5;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const DELETE_RULE: u16 = 8;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const GET_SET: u16 = 10;
    pub(crate) const DELETE_SET: u16 = 11;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DELETE_ELEMENT: u16 = 14;
    pub(crate) const NEW_OBJECT: u16 = 18;
    pub(crate) const GET_OBJECT: u16 = 19;
    pub(crate) const DELETE_OBJECT: u16 = 20;
}

/// Length of the fixed part of every netfilter message.
pub(crate) const FIXED: usize = 4;

/// In every message of the table, chains, rules, sets, elements and objects alike, the first attribute names the table.
pub(crate) const TABLE_NAME: u16 = 1;

/// A message about something in our table; its first attribute names the table.
pub(crate) fn message(kind: u16, flags: u16) -> Message {
    let mut message = Message::new(SUBSYSTEM | kind, flags, &[INET, 0, 0, 0]);
    message.put_text(TABLE_NAME, NAME);
    message
}
