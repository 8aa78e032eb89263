//! How results and trouble reach people and scripts: text or one JSON object on standard output, all else on standard
//! error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::failure::{Exit, Failure};

/// Where a verb's result goes.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON object.
    pub is_json: bool,
    /// Only what went wrong.
    pub is_quiet: bool,
}

impl Output {
    /// Prints a result: `text` for people, `value` for scripts. A reader that went away (`| head`) is no failure.
    pub fn result(&self, text: &str, value: &Value) {
        let whole = if self.is_json { format!("{value:#}\n") } else { text.to_owned() };
        if self.is_json || !self.is_quiet {
            let mut out = std::io::stdout().lock();
            let _gone = out.write_all(whole.as_bytes()).and_then(|()| out.flush());
        }
    }

    /// A line for people on standard error.
    pub fn note(&self, line: &str) {
        if !self.is_quiet {
            let _gone = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// What went wrong, and what to do next.
    pub fn failure(&self, failure: &Failure) {
        if self.is_json {
            let value = json!({"error": failure.to_json()});
            let _gone = writeln!(std::io::stdout(), "{value:#}");
        }
        let mut text = format!("tintype: {}\n", failure.message);
        if let Some(hint) = &failure.hint {
            text.push_str(&format!("  next: {hint}\n"));
        }
        let _gone = std::io::stderr().write_all(text.as_bytes());
    }

    /// A bar on a terminal; nothing elsewhere.
    pub fn bar(&self, what: &str) -> ProgressBar {
        if self.is_quiet || self.is_json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix} {bytes} {bytes_per_sec} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        bar.set_style(style);
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// Ends a program: says what went wrong, if something did, and gives its code.
pub fn end(output: Output, result: Result<Exit, Failure>) -> std::process::ExitCode {
    let exit = match result {
        Ok(exit) => exit,
        Err(failure) => {
            output.failure(&failure);
            failure.exit
        }
    };
    std::process::ExitCode::from(exit as u8)
}

/// A size for people: `0 B`, `1.5 KiB`, `2.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time span of microseconds for people: `850 µs`, `12.3 ms`, `2.1 s`.
pub fn micros(value: u64) -> String {
    match value {
        0..1000 => format!("{value} µs"),
        1000..1_000_000 => format!("{:.1} ms", value as f64 / 1e3),
        _ => format!("{:.1} s", value as f64 / 1e6),
    }
}

/// An age of seconds for people: `12s`, `5m`, `3h`, `8d`.
pub fn age(seconds: i64) -> String {
    match seconds {
        ..0 => "in the future".to_owned(),
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / 60),
        6000..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!([0, 1023, 1536, 2 << 30].map(size), ["0 B", "1023 B", "1.5 KiB", "2.0 GiB"]);
        assert_eq!([850, 12_300, 2_100_000].map(micros), ["850 µs", "12.3 ms", "2.1 s"]);
        assert_eq!([5, 600, 7200, 864_000].map(age), ["5s", "10m", "2h", "10d"]);
    }
}
