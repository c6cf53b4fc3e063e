//! `tombolo services` and `tombolo explain service`: what is offered, who answers, and why the others do not.

use std::path::Path;

use api::report::{PortReport, ServiceReport};

use crate::ask::{Part, expect};
use crate::output::{Format, Glyph, Outcome, Table};

/// Prints every service of the clusterset.
pub async fn list(run_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
    let services: Vec<ServiceReport> = match expect(run_dir, Part::Node, "services").await {
        Ok(services) => services,
        Err(outcome) => return Ok(outcome),
    };
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&services)?),
        Format::Text if services.is_empty() => println!("no service is imported"),
        Format::Text => print!("{}", render_list(&services)),
    }
    let unserved = services.iter().any(|service| service.ports.iter().any(|port| !is_served(port)));
    Ok(if unserved { Outcome::FoundBad } else { Outcome::Good })
}

/// Prints one service with every reason. `service` is `namespace/name`.
pub async fn explain(run_dir: &Path, service: &str, format: Format) -> anyhow::Result<Outcome> {
    let is_label = api::cluster_id::is_dns_label;
    let parts = service.split_once('/').filter(|(namespace, name)| is_label(namespace) && is_label(name));
    let Some((namespace, name)) = parts else {
        eprintln!("'{service}' is not a service: write it as namespace/name");
        return Ok(Outcome::Usage);
    };
    let question = format!("explain?service={namespace}/{name}");
    let report: Option<ServiceReport> = match expect(run_dir, Part::Node, &question).await {
        Ok(report) => report,
        Err(outcome) => return Ok(outcome),
    };
    let Some(report) = report else {
        eprintln!("{service} is not imported: no cluster exports it, or its namespace is not accepted");
        eprintln!("  run: tombolo services    and in the exporting cluster look at the ServiceExport's conditions");
        return Ok(Outcome::FoundBad);
    };
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => print!("{}", render(&report)),
    }
    Ok(if report.ports.iter().all(is_served) { Outcome::Good } else { Outcome::FoundBad })
}

fn is_served(port: &PortReport) -> bool {
    port.clusters.iter().any(|cluster| cluster.verdict == "Used")
}

/// `70% birch, 30% cedar`, or `nobody`.
fn shares(port: &PortReport) -> String {
    let used: Vec<String> = port
        .clusters
        .iter()
        .filter(|cluster| cluster.verdict == "Used")
        .map(|cluster| format!("{:.0}% {}", cluster.asked_percent, cluster.cluster))
        .collect();
    if used.is_empty() { "nobody".into() } else { used.join(", ") }
}

fn port_name(port: &PortReport) -> String {
    if port.name.is_empty() {
        format!("{}/{}", port.port, port.protocol)
    } else {
        format!("{}:{}/{}", port.name, port.port, port.protocol)
    }
}

fn render_list(services: &[ServiceReport]) -> String {
    let mut table = Table::new(&["SERVICE", "TYPE", "ADDRESSES", "PORT", "ANSWERED BY"]);
    for service in services {
        let addresses = if service.addresses.is_empty() { "-".to_owned() } else { service.addresses.join(",") };
        let row = |port: &str, who: String| {
            [service.service.clone(), service.service_type.clone(), addresses.clone(), port.to_owned(), who]
        };
        if service.ports.is_empty() {
            table.row(row("-", "-".into()));
        }
        for port in &service.ports {
            table.row(row(&port_name(port), shares(port)));
        }
    }
    table.render()
}

fn render(report: &ServiceReport) -> String {
    let mut text = String::new();
    for port in &report.ports {
        let generation =
            port.policy_generation.map(|generation| format!(", generation {generation}")).unwrap_or_default();
        text.push_str(&format!(
            "{} {}  {}  ({}{generation})\n",
            report.service,
            port_name(port),
            shares(port),
            port.policy
        ));
        let mut table = Table::new(&["", "CLUSTER", "TIER", "READY", "VERDICT", "WHY", "ASKED", "GOT"]);
        for cluster in &port.clusters {
            // Standing by, or having no endpoint at all, is neither good nor bad: a dash, not a verdict's glyph.
            let mark = match cluster.verdict.as_str() {
                "Used" => Glyph::Good.text(),
                "Standby" => "-",
                _ if cluster.total == 0 => "-",
                _ => Glyph::Bad.text(),
            };
            table.row([
                mark.to_owned(),
                cluster.cluster.clone(),
                cluster.tier.map_or_else(|| "-".into(), |tier| tier.to_string()),
                format!("{}/{}", cluster.ready, cluster.total),
                cluster.verdict.clone(),
                cluster.reason.clone(),
                format!("{:.0}%", cluster.asked_percent),
                format!("{:.0}%", cluster.installed_percent),
            ]);
        }
        text.push_str(&table.render());
    }
    if report.ports.is_empty() {
        text.push_str(&format!("{}  has no ports\n", report.service));
    }
    text
}

#[cfg(test)]
mod tests {
    use api::report::ClusterShare;

    use super::*;

    #[test]
    fn an_explanation_says_who_answers_and_why_the_others_do_not() {
        let share = |cluster: &str, verdict: &str, reason: &str, percent: f64| ClusterShare {
            cluster: cluster.into(),
            tier: Some(1),
            ready: 2,
            total: 2,
            verdict: verdict.into(),
            reason: reason.into(),
            asked_percent: percent,
            installed_percent: percent,
        };
        let port = PortReport {
            name: "http".into(),
            protocol: "TCP".into(),
            port: 80,
            policy: "RoutingPolicy shop/web".into(),
            policy_generation: Some(4),
            clusters: vec![share("birch", "Used", "InTier", 70.0), share("elm", "Excluded", "SilentPeer", 0.0)],
        };
        let text = render(&ServiceReport { service: "shop/web".into(), ports: vec![port], ..ServiceReport::default() });
        assert!(
            text.starts_with("shop/web http:80/TCP  70% birch  (RoutingPolicy shop/web, generation 4)\n"),
            "{text}"
        );
        assert!(text.contains("elm      1     2/2    Excluded  SilentPeer  0%     0%"), "{text}");
    }
}
