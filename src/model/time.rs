//! Points in time and the dated names of snapshots, all in UTC.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds since 1970, rounded down.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 with microseconds, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => write!(f, "{} us", self.0),
        }
    }
}

/// The dated name of a snapshot: a second in UTC, shown as `2026-11-20T10-15-30Z`.
///
/// Years 1970 to 9998, so that every name has the same length and text order is time order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotDate(i64);

/// The last second that a dated name can show.
const LAST_SECOND: i64 = 253_370_764_799;

/// Text or a number is not a dated name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a date like 2026-11-20T10-15-30Z")]
pub struct NotADate {
    text: String,
}

impl SnapshotDate {
    /// The name for a second since 1970.
    pub fn from_seconds(seconds: i64) -> Result<Self, NotADate> {
        if (0..=LAST_SECOND).contains(&seconds) { Ok(Self(seconds)) } else { Err(NotADate { text: seconds.to_string() }) }
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> i64 {
        self.0
    }

    /// max(now, newest + 1 s): a name that is later than every name so far, also when the clock went back.
    pub fn next(now: Timestamp, newest: Option<Self>) -> Result<Self, NotADate> {
        Self::from_seconds(newest.map_or(i64::MIN, |date| date.0 + 1).max(now.seconds()))
    }

    /// Year, month, day, hour, minute, second.
    pub fn civil(self) -> (i16, i8, i8, i8, i8, i8) {
        let time = jiff::Timestamp::from_second(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
        (time.year(), time.month(), time.day(), time.hour(), time.minute(), time.second())
    }

    fn from_civil(year: i16, month: i8, day: i8, hour: i8, minute: i8, second: i8) -> Option<Self> {
        let civil = jiff::civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
        let seconds = civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
        Self::from_seconds(seconds).ok()
    }
}

impl fmt::Display for SnapshotDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, hour, minute, second) = self.civil();
        // Through `pad`, so that columns can be asked for.
        f.pad(&format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}Z"))
    }
}

impl fmt::Debug for SnapshotDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SnapshotDate {
    type Err = NotADate;

    /// Exactly the shown form.
    fn from_str(text: &str) -> Result<Self, NotADate> {
        let wrong = || NotADate { text: text.chars().take(64).collect() };
        let bytes = text.as_bytes();
        let shape = b"dddd-dd-ddTdd-dd-ddZ";
        let fits = bytes.len() == shape.len()
            && bytes.iter().zip(shape).all(|(byte, form)| if *form == b'd' { byte.is_ascii_digit() } else { byte == form });
        if !fits {
            return Err(wrong());
        }
        let number = |from: usize, to: usize| bytes[from..to].iter().fold(0i16, |sum, digit| sum * 10 + i16::from(digit - b'0'));
        let part = |from: usize| i8::try_from(number(from, from + 2)).unwrap_or(-1);
        Self::from_civil(number(0, 4), part(5), part(8), part(11), part(14), part(17)).ok_or_else(wrong)
    }
}

impl Serialize for SnapshotDate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> SnapshotDate {
        text.parse().expect("a legal date")
    }

    #[test]
    fn shown_dates_read_back() {
        for text in ["1970-01-01T00-00-00Z", "2024-02-29T23-59-59Z", "2026-11-20T10-15-30Z", "9998-12-31T23-59-59Z"] {
            assert_eq!(date(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in
            ["", "2026-11-20", "2026-13-20T10-15-30Z", "2026-02-30T10-15-30Z", "2026-11-20T10:15:30Z", "+026-11-20T10-15-30Z"]
        {
            assert!(text.parse::<SnapshotDate>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_clock_that_went_back_still_gives_a_later_name() {
        let newest = date("2026-11-20T10-15-30Z");
        let back = Timestamp((newest.seconds() - 3600) * 1_000_000);
        assert_eq!(SnapshotDate::next(back, Some(newest)).expect("in range").to_string(), "2026-11-20T10-15-31Z");
        let later = Timestamp((newest.seconds() + 7) * 1_000_000 + 999_999);
        assert_eq!(SnapshotDate::next(later, Some(newest)).expect("in range").to_string(), "2026-11-20T10-15-37Z");
    }
}
