//! Stories that once went wrong, told for good.

use simulation::{Happening, Name, Order, Schedule, Shape, live};

#[test]
fn no_lane_leads_to_a_drained_gateway_while_another_lane_leads_elsewhere() {
    let (cluster, service) = (0, Name::Web);
    let happenings = vec![
        (0, Happening::Endpoint { cluster, service, host: 1, place: 0, ready: Some(true) }),
        (0, Happening::Export { cluster, service }),
        (2_000, Happening::Order { cluster: 1, order: Order::DrainGateway(1), undo: false }),
        (4_000, Happening::Lane { cluster: 1, slot: 0, lane: 1, open: false }),
        (6_000, Happening::Calm),
    ];
    let clusters = vec![Shape { gateways: 2, lanes: 2, ..Shape::PLAIN }; 2];
    for seed in 0..3 {
        let story =
            Schedule { seed, clusters: clusters.clone(), hub: None, happenings: happenings.clone(), sabotage: None };
        live(&story).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    }
}
