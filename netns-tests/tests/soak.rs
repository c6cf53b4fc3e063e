//! The soak finds what it is there to find. `make soak` runs it for long.

use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::deployment::Part;
use netns_tests::soak::Soak;
use netns_tests::soak::schedule::{Blow, Entry};
use netns_tests::traffic::load::Rates;
use netns_tests::world_test;

/// Enough that a cut of a second is seen, little enough to run beside other tests.
const RATES: Rates = Rates { connections: 50, datagrams: 200, queries: 100 };

#[test]
fn a_loss_that_nothing_on_the_schedule_explains_is_found_and_told_with_its_time() {
    world_test(|world| {
        let mut soak = Soak::begin(world, RATES)?;
        let on_schedule = Blow::GatewayDrained;
        soak.suffer(Entry { after: Duration::from_millis(500), blow: on_schedule, lasts: Duration::ZERO })?;

        let clusters = soak.clusters();
        let (amber, birch) = (clusters.amber.cluster(), clusters.birch.cluster());
        world.cut(amber, birch)?;
        let found = clusters.amber.eventually(Duration::from_secs(10), "the loss is found", || {
            soak.judge().err().context("nothing was lost yet")
        });
        world.mend(amber, birch)?;
        let told = found?.to_string();
        ensure!(told.contains("no event explains it"), "{told}");
        ensure!(told.contains(on_schedule.name()), "the last thing that happened is not named:\n{told}");
        Ok(())
    });
}

#[test]
fn a_dns_server_that_dies_unannounced_is_found_and_so_is_a_name_that_no_server_answers() {
    world_test(|world| {
        let soak = Soak::begin(world, RATES)?;
        let amber = &soak.clusters().amber;
        soak.judge()?;
        // When the first is gone as well, names come first.
        for (server, said) in amber.cluster().name_servers().iter().rev().zip(["172.31.1.11:53: ", "172.31.1.10:53: "])
        {
            amber.process(Part::Dns, server)?.kill()?;
            let told = amber.eventually(Duration::from_secs(10), "the loss is found", || {
                let told = soak.judge().err().context("nothing was lost yet")?.to_string();
                ensure!(told.contains(said), "{told}");
                Ok(told)
            })?;
            ensure!(told.contains("no event explains it") && told.contains("before any event"), "{told}");
        }
        Ok(())
    });
}
