//! Clusters on one machine, in network namespaces: the test world, the demo, the benchmarks.
