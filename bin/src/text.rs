//! Bytes, sizes and times as people read and write them.
//!
//! Always: what came from the store can move no cursor and ring no bell: control characters are escaped.

use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::time::Duration;

use bytes::Bytes;
use quorate_transport::{AddressRule, InvalidAddress};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// The beginning of a uuid: enough to tell two apart in a table.
pub fn short(uuid: Uuid) -> String {
    let mut text = uuid.simple().to_string();
    text.truncate(8);
    text
}

/// The same refusal, where the brackets of an IPv6 address are missing, with what was meant more likely: the last part of
/// `::1:7001` may belong to the address, and mostly is the port.
pub fn with_brackets(mut error: InvalidAddress) -> InvalidAddress {
    if let AddressRule::Brackets { with } = &mut error.rule
        && let Some((host, port)) = error.text.rsplit_once(':')
        && let (Ok(host), Ok(port @ 1..)) = (host.parse::<Ipv6Addr>(), port.parse::<u16>())
    {
        *with = format!("[{host}]:{port} (or {with}, if all of it is the address)");
    }
    error
}

/// How bytes are shown and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As text where it is UTF-8, else escaped.
    Text,
    /// As hexadecimal digits.
    Hex,
    /// As the number that `add` and `max` keep in 8 bytes; bytes that are none as text.
    Number,
}

impl Form {
    /// Bytes for people, on one line.
    pub fn show(self, bytes: &[u8]) -> String {
        match (self, number(bytes), std::str::from_utf8(bytes)) {
            (Form::Hex, ..) => hex(bytes),
            (Form::Number, Some(number), _) => number.to_string(),
            (_, _, Ok(text)) => printable(text),
            (_, _, Err(_)) => bytes.escape_ascii().to_string(),
        }
    }

    /// Bytes for pipes: as they are, or in the digits that were asked for.
    pub fn pipe(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match (self, number(bytes)) {
            (Form::Hex, _) => Cow::Owned(hex(bytes).into_bytes()),
            (Form::Number, Some(number)) => Cow::Owned(number.to_string().into_bytes()),
            (Form::Text, _) | (Form::Number, None) => Cow::Borrowed(bytes),
        }
    }

    /// Bytes as a person gave them.
    pub fn read(self, text: &str) -> Result<Bytes, NotOfForm> {
        let not = |expected| NotOfForm {
            text: text.to_owned(),
            expected,
        };
        match self {
            Form::Text => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Form::Hex => unhex(text)
                .map(Bytes::from)
                .ok_or_else(|| not("hexadecimal: an even number of the digits 0-9 and a-f is needed")),
            Form::Number => {
                let number: i64 = text
                    .parse()
                    .map_err(|_| not("a number: a whole one from -2^63 to 2^63-1 is needed"))?;
                Ok(Bytes::copy_from_slice(&number.to_be_bytes()))
            }
        }
    }
}

/// How keys and values are shown and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forms {
    /// Keys.
    pub keys: Form,
    /// Values.
    pub values: Form,
}

impl Forms {
    /// Text, unless asked for otherwise.
    pub fn new(hex: bool, number: bool) -> Self {
        let keys = if hex { Form::Hex } else { Form::Text };
        let values = if number { Form::Number } else { keys };
        Self { keys, values }
    }

    /// A key for people.
    pub fn key(self, bytes: &[u8]) -> String {
        self.keys.show(bytes)
    }

    /// A value for people. One that is no text and may be a counter is shown as its bytes and as the number.
    pub fn value(self, bytes: &[u8]) -> String {
        let is_text = std::str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(char::is_control));
        match number(bytes) {
            Some(number) if self.values == Form::Text && !is_text => {
                format!("0x{} (number {number})", hex(bytes))
            }
            _ => self.values.show(bytes),
        }
    }
}

/// The number that 8 bytes are to `add` and `max`.
pub fn number(bytes: &[u8]) -> Option<i64> {
    bytes.try_into().ok().map(i64::from_be_bytes)
}

/// Text that does not have the form that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct NotOfForm {
    text: String,
    expected: &'static str,
}

fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_debug())
        } else {
            shown.push(c)
        }
    }
    shown
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|b| [digit(b >> 4), digit(b & 15)])
        .collect()
}

/// The bytes of such digits; `None` where there are others, or an odd number.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

/// The beginning of a text, with how much there is in all where it was cut.
pub fn shorten(text: String, bytes: usize, width: usize) -> String {
    if text.chars().count() <= width {
        return text;
    }
    let start: String = text.chars().take(width).collect();
    format!("{start}… ({})", size(bytes as u64))
}

/// A key in JSON, whatever its bytes are: `{"text": "a", "hex": "61"}`. `text` is null where they are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonKey(pub Bytes);

/// A value in JSON, whatever its bytes are: `{"text": "a", "hex": "61", "number": null}`. `number` is what `add` and `max`
/// would find there, null where it has not 8 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonValue(pub Bytes);

impl Serialize for JsonKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut key = serializer.serialize_struct("Key", 2)?;
        key.serialize_field("text", &std::str::from_utf8(&self.0).ok())?;
        key.serialize_field("hex", &hex(&self.0))?;
        key.end()
    }
}

impl Serialize for JsonValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut value = serializer.serialize_struct("Value", 3)?;
        value.serialize_field("text", &std::str::from_utf8(&self.0).ok())?;
        value.serialize_field("hex", &hex(&self.0))?;
        value.serialize_field("number", &number(&self.0))?;
        value.end()
    }
}

const UNITS: [(&str, u64); 5] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// A number of bytes with its unit.
pub fn size(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// A number of bytes to the byte: in a unit where two digits behind the point say it all, and else in bytes.
pub fn exact_size(bytes: u64) -> String {
    let hundredths = |unit: u64| u128::from(bytes) * 100 / u128::from(unit);
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if (u128::from(bytes) * 100).is_multiple_of(u128::from(*unit)) => {
            let (whole, rest) = (hundredths(*unit) / 100, hundredths(*unit) % 100);
            let text = format!("{whole}.{rest:02}");
            format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => format!("{bytes} B"),
    }
}

/// A number of bytes as a person writes it: `65536`, `64 KiB`, `64KiB`, `1.5GiB`. Nothing is rounded: what comes to no whole
/// bytes is none.
pub fn parse_size(text: &str) -> Option<u64> {
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let text = text.trim();
    let (number, unit) = text.split_at(text.len() - text.trim_start_matches(is_of_number).len());
    let unit = match unit.trim() {
        "" | "B" => 1,
        name => UNITS.iter().find(|(known, _)| *known == name)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let parts = u32::try_from(fraction.len())
        .ok()
        .and_then(|digits| 10u128.checked_pow(digits))?;
    let (whole, fraction) = (whole.parse::<u64>().ok()?, fraction.parse::<u64>().ok()?);
    let fraction = u128::from(fraction) * u128::from(unit);
    let fraction = fraction.is_multiple_of(parts).then(|| fraction / parts)?;
    whole
        .checked_mul(unit)?
        .checked_add(u64::try_from(fraction).ok()?)
}

/// A time that somebody sets, in words that read back: days where it has some, for months and years are of no whole days.
pub fn set_time(time: Duration) -> String {
    const DAY: u64 = 86_400;
    let (days, rest) = (
        time.as_secs() / DAY,
        Duration::new(time.as_secs() % DAY, time.subsec_nanos()),
    );
    let days = match days {
        0 => return humantime::format_duration(time).to_string(),
        1 => "1 day".to_owned(),
        many => format!("{many} days"),
    };
    match rest.is_zero() {
        true => days,
        false => format!("{days} {}", humantime::format_duration(rest)),
    }
}

/// A time in the unit that suits it.
pub fn duration(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        m if m < 1_000.0 => format!("{m:.0} µs"),
        m if m < 1_000_000.0 => format!("{:.1} ms", m / 1e3),
        m => format!("{:.2} s", m / 1e6),
    }
}

/// A number with its thousands apart.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut apart = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

/// How many letters to change, add or drop to get from one text to the other.
pub fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_without_brackets_is_suggested_with_the_port_that_was_given() {
        let told = |text: &str| {
            with_brackets(text.parse::<quorate_transport::ListenAddress>().unwrap_err()).to_string()
        };
        assert!(
            told("::1:7001").contains("such as [::1]:7001 (or [::1:7001]:7001"),
            "{}",
            told("::1:7001")
        );
        assert!(
            told("fe80::1").ends_with("such as [fe80::1]:7001"),
            "{}",
            told("fe80::1")
        );
    }

    #[test]
    fn bytes_are_shown_as_text_where_they_are_text() {
        assert_eq!(Form::Text.show("grüße".as_bytes()), "grüße");
        assert_eq!(Form::Text.show(b"\xff\x00"), "\\xff\\x00");
        assert_eq!(Form::Hex.show(b"\xff\x00"), "ff00");
    }

    #[test]
    fn bytes_go_into_pipes_as_they_are() {
        let counter = (-7i64).to_be_bytes();
        assert_eq!(*Form::Text.pipe(b"\xff\n"), b"\xff\n"[..]);
        assert_eq!(*Form::Text.pipe(&counter), counter[..]);
        assert_eq!(*Form::Hex.pipe(b"\xff\n"), b"ff0a"[..]);
        assert_eq!(*Form::Number.pipe(&counter), b"-7"[..]);
        assert_eq!(*Form::Number.pipe(b"\xff"), b"\xff"[..], "no number");
    }

    #[test]
    fn a_counter_is_shown_as_the_number_that_it_is() {
        let counter = (-7i64).to_be_bytes();
        assert_eq!(Form::Number.show(&counter), "-7");
        assert_eq!(Form::Number.show(b"no counter"), "no counter");
        let shown = |hex, number, bytes: &[u8]| Forms::new(hex, number).value(bytes);
        assert_eq!(
            shown(false, false, &1i64.to_be_bytes()),
            "0x0000000000000001 (number 1)"
        );
        assert_eq!(shown(false, false, b"eight by"), "eight by", "text is text");
        assert_eq!(shown(false, true, &1i64.to_be_bytes()), "1");
        assert_eq!(shown(true, false, &1i64.to_be_bytes()), "0000000000000001");
    }

    #[test]
    fn a_number_reads_back() {
        for number in [0, 1, -1, i64::MAX, i64::MIN] {
            let read = Form::Number.read(&number.to_string()).unwrap();
            assert_eq!(super::number(&read), Some(number));
        }
        for not in ["", "1.5", "0x1", "9223372036854775808", "one"] {
            let error = Form::Number.read(not).unwrap_err().to_string();
            assert!(error.contains("is not a number"), "{error}");
        }
    }

    #[test]
    fn json_has_the_same_fields_whatever_the_bytes_are() {
        let json =
            |bytes: &'static [u8]| serde_json::to_string(&JsonValue(Bytes::from_static(bytes))).unwrap();
        assert_eq!(json(b"a"), r#"{"text":"a","hex":"61","number":null}"#);
        assert_eq!(json(b"\xff"), r#"{"text":null,"hex":"ff","number":null}"#);
        assert_eq!(
            json(&[0, 0, 0, 0, 0, 0, 1, 0]),
            r#"{"text":"\u0000\u0000\u0000\u0000\u0000\u0000\u0001\u0000","hex":"0000000000000100","number":256}"#
        );
        let key = serde_json::to_string(&JsonKey(Bytes::from_static(b"\xff"))).unwrap();
        assert_eq!(key, r#"{"text":null,"hex":"ff"}"#);
    }

    #[test]
    fn a_value_cannot_drive_the_terminal() {
        assert_eq!(Form::Text.show(b"\x1b[2J"), "\\u{1b}[2J");
        assert_eq!(Form::Text.show(b"a\nb"), "a\\nb");
    }

    #[test]
    fn hexadecimal_reads_back() {
        assert_eq!(Form::Hex.read("00FFa0").unwrap(), &b"\x00\xff\xa0"[..]);
        assert!(Form::Hex.read("abc").is_err());
        assert!(Form::Hex.read("zz").is_err());
        assert!(Form::Hex.read("é0").is_err(), "two bytes, but one character");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("64 MiB"), Some(64 << 20));
        assert_eq!(parse_size("64KiB"), Some(64 << 10));
        assert_eq!(parse_size("100"), Some(100));
        assert_eq!(parse_size("64 MB"), None);
        assert_eq!(parse_size("MiB"), None);
        assert_eq!(parse_size("99999999999 TiB"), None, "out of range");
        assert_eq!(parse_size("16384 PiB"), None, "out of range by one");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(1500), "1.5 KiB");
    }

    #[test]
    fn a_fraction_of_a_size_counts_to_the_byte_or_not_at_all() {
        assert_eq!(parse_size("1.5GiB"), Some(3 << 29));
        assert_eq!(parse_size("0.25 KiB"), Some(256));
        assert_eq!(parse_size("1.0"), Some(1));
        assert_eq!(parse_size("1PiB"), Some(1 << 50));
        for not in ["0.1KiB", "1.5", "1.5.5KiB", ".5KiB", "1.KiB", ".", "-1KiB"] {
            assert_eq!(parse_size(not), None, "{not}");
        }
        assert_eq!(
            parse_size(&format!("1.{}KiB", "0".repeat(60))),
            None,
            "too many digits"
        );
    }

    #[test]
    fn a_size_is_shown_to_the_byte_where_it_must_be() {
        for (bytes, shown) in [
            (0, "0 B"),
            (4095, "4095 B"),
            (4096, "4 KiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 30) - 1, "1073741823 B"),
            (1 << 50, "1 PiB"),
            (u64::MAX, "18446744073709551615 B"),
        ] {
            assert_eq!(exact_size(bytes), shown);
            assert_eq!(parse_size(shown), Some(bytes), "{shown} reads back");
        }
    }

    #[test]
    fn a_time_of_days_is_shown_in_days() {
        const DAY: u64 = 86_400;
        for (seconds, shown) in [
            (0, "0s"),
            (5_400, "1h 30m"),
            (DAY, "1 day"),
            (31 * DAY + 3_600, "31 days 1h"),
            (365 * DAY, "365 days"),
        ] {
            let time = Duration::from_secs(seconds);
            assert_eq!(set_time(time), shown);
            assert_eq!(humantime::parse_duration(shown), Ok(time), "{shown} reads back");
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [thousands(7), thousands(1000), thousands(1234567)],
            ["7", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn distances_count_letters() {
        assert_eq!(
            [
                distance("abc", "abc"),
                distance("abc", "abd"),
                distance("", "abc"),
                distance("listn", "listen")
            ],
            [0, 1, 3, 1]
        );
    }
}
