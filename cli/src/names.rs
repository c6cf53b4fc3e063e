//! `tombolo explain dns`: what a name answers, and from which objects.

use std::path::Path;

use api::report::NameReport;

use crate::ask::{Part, expect};
use crate::output::{Format, Glyph, Outcome};

/// Prints what this host's DNS server answers for a name, and why.
pub async fn explain(run_dir: &Path, name: &str, record_type: &str, format: Format) -> anyhow::Result<Outcome> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
    if !name.bytes().all(plain) || !record_type.bytes().all(plain) {
        eprintln!("'{name}' {record_type} is no question: a name has letters, digits, '-', '_', '*' and dots");
        return Ok(Outcome::Usage);
    }
    let question = format!("explain?name={name}&type={record_type}");
    let report: NameReport = match expect(run_dir, Part::Dns, &question).await {
        Ok(report) => report,
        Err(outcome) => return Ok(outcome),
    };
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => print!("{}", render(&report)),
    }
    Ok(if report.answers.is_empty() { Outcome::FoundBad } else { Outcome::Good })
}

fn render(report: &NameReport) -> String {
    let glyph = if report.answers.is_empty() { Glyph::Bad } else { Glyph::Good };
    let mut text = format!("{} {} {}  {}\n", glyph.text(), report.name, report.record_type, report.response_code);
    for answer in &report.answers {
        text.push_str(&format!("  answer   {answer}\n"));
    }
    for reason in &report.reasons {
        text.push_str(&format!("  because  {reason}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_an_answer_says_why() {
        let report = NameReport {
            name: "web.shop.svc.clusterset.local".into(),
            record_type: "A".into(),
            response_code: "NXDOMAIN".into(),
            answers: vec![],
            reasons: vec!["no ServiceImport shop/web".into()],
        };
        let text = render(&report);
        assert!(text.contains("NXDOMAIN\n  because  no ServiceImport shop/web"), "{text}");
    }
}
