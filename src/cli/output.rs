//! The agent's output on stdout: one line for each event, for people or as JSON.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use qtunnel::{Carrier, Event, LinkStats, Observer, RequestRecord, escape};
use serde_json::{Value, json};

use super::Failure;

/// Formats and writes lines on a thread of its own, so that a terminal that has stopped reading does not block the
/// tunnel, and a log that nobody reads does not slow it down.
pub struct Output {
    lines: SyncSender<Box<Line>>,
    /// Lines that were dropped because the queue was full.
    skipped: Arc<AtomicU64>,
    /// Disconnected once all lines are written.
    written: Receiver<()>,
    json: bool,
}

/// A line of output before or after formatting.
enum Line {
    Event { at: Timestamp, event: Event },
    Text(String),
}

impl Output {
    /// Start the writer thread, for people or (`json`) for programs.
    pub fn start(json: bool, upstream: String) -> Self {
        let (lines, queue) = sync_channel(MAX_QUEUED_LINES);
        let skipped = Arc::new(AtomicU64::new(0));
        let missing = skipped.clone();
        let style = Style::new(json, upstream);
        let (writing, written) = sync_channel::<()>(0);
        // Not joined: the thread ends when all senders are dropped, or with the process.
        std::thread::spawn(move || {
            write(&queue, &missing, style);
            drop(writing);
        });
        Self {
            lines,
            skipped,
            written,
            json,
        }
    }

    /// Return an observer that queues a line for each event.
    pub fn observer(&self) -> Observer {
        let (lines, skipped) = (self.lines.clone(), self.skipped.clone());
        Observer::new(move |event| {
            let at = Timestamp::now();
            if lines.try_send(Box::new(Line::Event { at, event })).is_err() {
                skipped.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Write the queued lines, and in JSON the final event with the exit code and the error.
    pub fn finish(self, failure: Option<&Failure>) {
        if self.json {
            let stopped = json!({
                "event": "stopped",
                "code": failure.map_or(0, |failure| failure.code),
                "error": failure.map(|failure| escape(&failure.error.to_string()).into_owned()),
            });
            let stopped = Line::Text(stopped.to_string());
            let _ = self.lines.try_send(Box::new(stopped));
        }
        drop(self.lines);
        // The observer, which holds the other sender, was dropped with the agent. The wait is limited: a terminal may
        // have stopped reading.
        let _ = self.written.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Write lines until all senders are dropped.
fn write(queue: &Receiver<Box<Line>>, missing: &AtomicU64, mut style: Style) {
    let mut out = std::io::stdout();
    let mut text = String::new();
    while let Ok(line) = queue.recv() {
        text.clear();
        for line in std::iter::once(line).chain(queue.try_iter()) {
            style.write(&mut text, *line);
            text.push('\n');
        }
        match (missing.swap(0, Ordering::Relaxed), style.json) {
            (0, _) => {}
            (skipped, true) => {
                let skipped = json!({ "event": "skipped", "lines": skipped });
                text.push_str(&format!("{skipped}\n"));
            }
            (skipped, false) => {
                let line = format!("({skipped} lines not shown: the terminal is too slow)\n");
                text.push_str(&line);
            }
        }
        // Fails if the reader has gone: the tunnel continues without output.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        std::thread::sleep(WRITE_INTERVAL);
    }
}

/// The format of the lines.
struct Style {
    json: bool,
    color: bool,
    upstream: String,
    /// The last second, and its time of day as text.
    clock: (i64, String),
}

impl Style {
    fn new(json: bool, upstream: String) -> Self {
        Self {
            json,
            color: !json && super::shows_colors(&std::io::stdout()),
            upstream,
            clock: (i64::MIN, String::new()),
        }
    }

    /// Append the text of a line.
    fn write(&mut self, text: &mut String, line: Line) {
        match line {
            Line::Text(line) => text.push_str(&line),
            Line::Event { at, event } if self.json => text.push_str(&machine(at, &event)),
            Line::Event { at, event } => {
                if self.clock.0 != at.as_second() {
                    let time = at.to_zoned(TimeZone::system()).strftime("%H:%M:%S");
                    self.clock = (at.as_second(), time.to_string());
                }
                self.human(text, &event);
            }
        }
    }

    /// Format a request. There may be tens of thousands in a second.
    fn request(&self, text: &mut String, log: &RequestRecord) {
        let status = log
            .status
            .and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.as_ref().map_or("---", StatusCode::as_str);
        let (paint, plain) = match log.status {
            _ if !self.color => ("", ""),
            Some(..300) => ("\x1b[32m", RESET),
            Some(300..400) => ("\x1b[36m", RESET),
            Some(400..500) => ("\x1b[33m", RESET),
            _ => ("\x1b[31m", RESET),
        };
        let method = escape(log.method.as_str());
        let gap = &METHOD_PADDING[method.len().min(METHOD_PADDING.len())..];
        let (clock, path) = (&self.clock.1, escape(&log.target));
        for part in [
            clock, "  ", &method, gap, " ", &path, "  ", paint, status, plain, "  ",
        ] {
            text.push_str(part);
        }
        text.push_str(&format_duration(log.duration));
        text.push_str("  ");
        text.push_str(&format_size(log.sent));
        if log.received > 0 {
            text.push_str(&format!(" (in {})", format_size(log.received)));
        }
        if let Some(problem) = &log.problem {
            text.push_str("  ");
            text.push_str(&escape(problem));
        }
    }

    /// Format an event for people.
    fn human(&self, text: &mut String, event: &Event) {
        let clock = &self.clock.1;
        let line = match event {
            Event::Request(log) => return self.request(text, log),
            Event::Ready { tunnels, transport } => {
                let urls = tunnels.iter().flat_map(|tunnel| &tunnel.urls);
                let lines: Vec<_> = urls
                    .map(|url| format!("{url}  →  {}", escape(&self.upstream)))
                    .collect();
                format!(
                    "{}\nconnected over {} ({})",
                    lines.join("\n"),
                    transport_name(transport.carrier),
                    path_summary(transport)
                )
            }
            Event::Transport(transport) => format!(
                "{clock}  {} ({})",
                escape(&transport.reason),
                path_summary(transport)
            ),
            Event::Reconnecting { reason, wait } if wait.is_zero() => {
                format!("{clock}  {}; reconnecting", escape(reason))
            }
            Event::Reconnecting { reason, wait } => {
                let wait = humantime::format_duration(Duration::from_millis(millis(*wait)));
                format!("{clock}  {}; next attempt in {wait}", escape(reason))
            }
            Event::UpstreamDown { upstream, problem } => format!(
                "warning: nothing answers at {} yet ({}); the tunnel is open all the same",
                escape(upstream),
                escape(problem)
            ),
            Event::CookiesLeftOut { host, count } => format!(
                "{clock}  left out {count} cookie(s) for a domain above {}: other tunnels would get \
                 them; set them without Domain",
                escape(host)
            ),
            Event::Notice(notice) => format!("{clock}  {}", escape(notice)),
        };
        text.push_str(&line);
    }
}

/// Format an event as a JSON object.
fn machine(at: Timestamp, event: &Event) -> String {
    let value = match event {
        Event::Ready { tunnels, transport } => {
            let mut value = transport_event("ready", transport);
            value["url"] = json!(tunnels.first().and_then(|tunnel| tunnel.urls.first()));
            value["tunnels"] = tunnels
                .iter()
                .map(|tunnel| json!({ "name": tunnel.name(), "urls": tunnel.urls }))
                .collect();
            value
        }
        Event::Transport(transport) => transport_event("transport", transport),
        Event::Reconnecting { reason, wait } => json!({
            "event": "reconnecting", "reason": escape(reason), "wait_ms": millis(*wait),
        }),
        Event::UpstreamDown { upstream, problem } => json!({
            "event": "upstream_down", "upstream": escape(upstream), "problem": escape(problem),
        }),
        Event::CookiesLeftOut { host, count } => json!({
            "event": "cookies_left_out", "host": escape(host), "count": count,
        }),
        Event::Notice(text) => json!({ "event": "notice", "text": escape(text) }),
        Event::Request(log) => json!({
            "event": "request",
            "time": at.to_string(),
            "visitor": log.visitor.to_string(),
            "method": escape(log.method.as_str()),
            "path": escape(&log.target),
            "status": log.status,
            "duration_ms": log.duration.as_micros() as f64 / 1000.0,
            "bytes_in": log.received,
            "bytes_out": log.sent,
            "problem": log.problem.as_deref().map(escape),
        }),
    };
    value.to_string()
}

/// Build a JSON event with the statistics of the carrier.
fn transport_event(event: &str, transport: &LinkStats) -> Value {
    json!({
        "event": event,
        "transport": transport_name(transport.carrier),
        "reason": escape(&transport.reason),
        "rtt_ms": transport.rtt.as_secs_f64() * 1e3,
        "sent_packets": transport.sent_packets,
        "lost_packets": transport.lost_packets,
        "mtu": transport.mtu,
    })
}

/// Summarize a path: its round-trip time, loss rate and largest packet.
pub fn path_summary(transport: &LinkStats) -> String {
    let lost = match transport.sent_packets {
        0 => 0.0,
        sent => transport.lost_packets as f64 / sent as f64 * 100.0,
    };
    format!(
        "round trip {}, {lost:.1} % lost, packets of up to {} bytes",
        format_duration(transport.rtt),
        transport.mtu
    )
}

/// Return the name of a carrier, as in `--transport`.
pub fn transport_name(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Udp => "quic",
        Carrier::WebSocket => "websocket",
    }
}

/// Return a duration in whole milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Format a duration with one decimal in the largest unit.
fn format_duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 60.. => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        1.. => decimal(millis(time), 1_000, " s"),
        0 => decimal(time.subsec_micros().into(), 1_000, " ms"),
    }
}

/// Format a number of bytes with one decimal in the largest unit.
fn format_size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => decimal(bytes, 1_000_000_000, " GB"),
        1_000_000.. => decimal(bytes, 1_000_000, " MB"),
        1_000.. => decimal(bytes, 1_000, " kB"),
        _ => format!("{bytes} B"),
    }
}

/// Format `number` in units of `unit` with one decimal. Uses integers only: formatting a float takes some seven hundred
/// instructions, and each request has two numbers.
fn decimal(number: u64, unit: u64, name: &str) -> String {
    let tenths = number.saturating_add(unit / 20) / (unit / 10);
    let mut digits = itoa::Buffer::new();
    let mut text = String::with_capacity(16);
    text.push_str(digits.format(tenths / 10));
    text.push('.');
    text.push_str(digits.format(tenths % 10));
    text.push_str(name);
    text
}

/// The escape sequence that ends a colour.
const RESET: &str = "\x1b[0m";

/// Padding to the width of most methods.
const METHOD_PADDING: &str = "       ";

/// The most lines that wait for the terminal; more are dropped and counted.
const MAX_QUEUED_LINES: usize = 4096;

/// Time that the last lines have to be written when the agent ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval between two writes, in which the lines of a busy tunnel are batched. A system call for each line, and
/// waking this thread for it, took a fifth of the agent's CPU time.
const WRITE_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_one_decimal_in_the_largest_unit() {
        for (micros, text) in [
            (0, "0.0 ms"),
            (49, "0.0 ms"),
            (50, "0.1 ms"),
            (12_340, "12.3 ms"),
            (999_949, "999.9 ms"),
            (1_250_000, "1.3 s"),
            (59_900_000, "59.9 s"),
            (61_700_000, "1m 1s"),
        ] {
            assert_eq!(format_duration(Duration::from_micros(micros)), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_049, "1.0 kB"),
            (1_050, "1.1 kB"),
            (2_500_000, "2.5 MB"),
            (7_000_000_000, "7.0 GB"),
            (u64::MAX, "18446744073.7 GB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }
}
