//! The DNS part: answers clusterset.local from an immutable zone.
