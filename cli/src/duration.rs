//! Durations as people type them: `90s`, `15m`, `1h`, `2d`.

use std::time::Duration;

/// Reads a whole number and a unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let refused = || format!("'{text}' is not a duration: write 90s, 15m, 1h or 2d");
    let unit = text.chars().last().ok_or_else(refused)?;
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| refused())?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(refused()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_are_read_and_nothing_else() {
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "h", "1", "-1h", "1.5h", "1w", "99999999999999999999d", "1é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
