//! A picture of what the demo printed, for the README: `demo --record FILE`.

use std::fmt::Write as _;

/// Advance of one character and height of one line, in pixels, at the font size below.
const CHARACTER: f64 = 7.8;
const LINE: usize = 20;
const FONT_SIZE: usize = 13;
const MARGIN: usize = 16;

/// The lines as an SVG picture of a terminal.
pub fn svg(lines: &[String]) -> String {
    let columns = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = 2 * MARGIN + (columns as f64 * CHARACTER).ceil() as usize;
    let height = 2 * MARGIN + lines.len() * LINE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"make demo\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b1f24\"/>\n\
         <g font-family=\"ui-monospace, monospace\" font-size=\"{FONT_SIZE}\" fill=\"#d0d7de\" xml:space=\"preserve\">\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let y = MARGIN + number * LINE + FONT_SIZE;
        let text = line.replace('&', "&amp;").replace('<', "&lt;");
        let text = match text.strip_prefix('✓') {
            Some(rest) => format!("<tspan fill=\"#3fb950\">✓</tspan>{rest}"),
            None => text,
        };
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y}\">{text}</text>");
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_would_be_markup_is_text_in_the_picture() {
        let svg = super::svg(&["✓ a <b> & c".to_owned()]);
        assert!(svg.contains("</tspan> a &lt;b> &amp; c</text>"), "{svg}");
    }
}
