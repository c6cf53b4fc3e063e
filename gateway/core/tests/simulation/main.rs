//! Several gateways' cores in one pretend world: a network that loses, delays, overtakes, doubles, translates and
//! breaks; clocks that jump; processes that are killed. No socket, no thread, no real second passes.
//!
//! [`scenarios`] tells single stories, [`seeds`] makes up many. [`admission`] is decision 9 as sentences. [`rotation`] changes keys while packets pass.

mod admission;
mod gateway;
mod packets;
mod pretend;
mod random;
mod rotation;
mod scenarios;
mod seeds;
mod world;
