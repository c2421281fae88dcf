//! Formats numbers for readers.

use time::OffsetDateTime;
use time::macros::format_description;

/// A count with a space between thousands: `1 234 567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A count with three significant digits: `1.23 M`.
pub fn short(n: f64) -> String {
    let (scaled, unit) = match n.abs() {
        a if a >= 0.9995e12 => (n / 1e12, "\u{202f}T"),
        a if a >= 0.9995e9 => (n / 1e9, "\u{202f}B"),
        a if a >= 0.9995e6 => (n / 1e6, "\u{202f}M"),
        a if a >= 0.9995e3 => (n / 1e3, "\u{202f}K"),
        _ => (n, ""),
    };
    let decimals = match scaled.abs() {
        a if unit.is_empty() && a.fract() == 0.0 => 0,
        a if a >= 99.95 => 0,
        a if a >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.decimals$}{unit}")
}

/// A duration: `48 s`, `3 min 12 s`, `2 h 05 min`, `3 d 04 h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {:02} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A loss in nats, with four decimals.
pub fn loss(value: f64) -> String {
    format!("{value:.4}")
}

/// A difference with its sign always shown.
pub fn signed(value: f64) -> String {
    // U+2212, as wide as the plus.
    let sign = if value < 0.0 { '\u{2212}' } else { '+' };
    format!("{sign}{:.4}", value.abs())
}

/// A share as a percentage: `6.2 %`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let decimals = match percent.abs() {
        p if p >= 10.0 || (p - p.round()).abs() < 1e-9 => 0,
        p if p >= 0.95 => 1,
        _ => 2,
    };
    format!("{percent:.decimals$} %")
}

/// A point in time, to the second, in UTC.
pub fn moment(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC"))
        .unwrap_or_else(|_| at.to_string())
}

/// The time of day of a point in time, in UTC.
pub fn clock(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(format_description!("[hour]:[minute]:[second]"))
        .unwrap_or_else(|_| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
        assert_eq!(short(1_816_000_000.0), "1.82\u{202f}B");
        assert_eq!(short(999_600.0), "1.00\u{202f}M");
        assert_eq!(short(25_600.0), "25.6\u{202f}K");
        assert_eq!(short(400.0), "400");
        assert_eq!(duration(4.25), "4.2 s");
        assert_eq!(duration(59.7), "1 min 00 s");
        assert_eq!(duration(192.0), "3 min 12 s");
        assert_eq!(duration(7_500.0), "2 h 05 min");
        assert_eq!(duration(273_600.0), "3 d 04 h");
        assert_eq!(signed(-0.0123), "\u{2212}0.0123");
        assert_eq!(percent(0.0625), "6.2 %");
        assert_eq!(percent(0.05), "5 %");
        assert_eq!(percent(0.0005), "0.05 %");
        assert_eq!(percent(0.754), "75 %");
    }
}
