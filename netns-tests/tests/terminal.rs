//! What ends connections asks first where somebody can be asked.

use anyhow::ensure;
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::world_test;

const GOOD: i32 = 0;
const REFUSED: i32 = 4;

#[test]
fn a_block_typed_at_a_terminal_asks_first_and_only_a_yes_cuts_the_peer_off() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let amber = &clusters.amber;
        let worker = amber.cluster().worker()?;
        let [target, _] = clusters.web()?;
        for no in ["n", ""] {
            let mut terminal = amber.types_at_terminal("peers block birch --wait")?;
            terminal.wait_for("every connection with birch ends at once. Go on? [y/N] ", PATIENCE)?;
            // While it asks nothing has happened.
            clusters.wait_for_answers_from(target, &["birch", "cedar"])?;
            terminal.enter(no)?;
            let (status, printed) = terminal.end(PATIENCE)?;
            ensure!(status.code() == Some(REFUSED), "{status}:\n{printed}");
            ensure!(printed.contains("nothing was changed") && !printed.contains("Blocked"), "{printed}");
            amber.types_until(PATIENCE, "peers", GOOD, &["birch  Active"])?;
            clusters.wait_for_answers_from(target, &["birch", "cedar"])?;
        }
        let mut terminal = amber.types_at_terminal("peers block birch --wait")?;
        terminal.wait_for("Go on? [y/N] ", PATIENCE)?;
        terminal.enter("y")?;
        let (status, printed) = terminal.end(PATIENCE)?;
        ensure!(status.code() == Some(GOOD), "{status}:\n{printed}");
        ensure!(printed.contains("peer birch: Active → Blocked") && printed.contains("birch is cut off"), "{printed}");
        amber.types_until(PATIENCE, "peers", GOOD, &["birch  Blocked"])?;
        amber.wait_for_shares(worker, "shop/web", &[("cedar", 1)], PATIENCE)
    });
}
