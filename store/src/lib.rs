//! Where objects live: one typed list-and-watch, several backends.
