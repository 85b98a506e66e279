//! What a person or a program at the agent sees: one line for each event, on stdout.

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

/// Makes and writes lines on a thread of its own, so that a terminal that has stopped reading does not stop
/// the tunnel, and a log that is read by nobody does not slow it down.
pub struct Output {
    lines: SyncSender<Box<Line>>,
    skipped: Arc<AtomicU64>,
    /// Is disconnected once all is written.
    written: Receiver<()>,
    json: bool,
}

/// What is to become a line.
enum Line {
    Happened { at: Timestamp, event: Event },
    Made(String),
}

impl Output {
    /// Begin to write, for people or (`json`) for programs.
    pub fn start(json: bool, upstream: String) -> Self {
        let (lines, queue) = sync_channel(QUEUE);
        let skipped = Arc::new(AtomicU64::new(0));
        let missing = skipped.clone();
        let style = Style::new(json, upstream);
        let (writing, written) = sync_channel::<()>(0);
        // Nobody joins it: it ends when all senders are gone, or with the process.
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

    /// Return an observer that writes here.
    pub fn observer(&self) -> Observer {
        let (lines, skipped) = (self.lines.clone(), self.skipped.clone());
        Observer::new(move |event| {
            let at = Timestamp::now();
            if lines
                .try_send(Box::new(Line::Happened { at, event }))
                .is_err()
            {
                skipped.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Write what is left, and that the agent has stopped, and why if not as it was told.
    pub fn finish(self, failure: Option<&Failure>) {
        if self.json {
            let stopped = json!({
                "event": "stopped",
                "code": failure.map_or(0, |failure| failure.code),
                "error": failure.map(|failure| escape(&failure.error.to_string()).into_owned()),
            });
            let stopped = Line::Made(stopped.to_string());
            let _ = self.lines.try_send(Box::new(stopped));
        }
        drop(self.lines);
        // The observer, which has the other sender, is gone with the agent. A terminal that has stopped reading
        // is not waited for.
        let _ = self.written.recv_timeout(LAST_LINES);
    }
}

/// Write lines until all senders are gone.
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
        // It fails if nobody reads any more: the tunnel goes on without being watched.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        std::thread::sleep(TOGETHER);
    }
}

/// How lines look.
struct Style {
    json: bool,
    color: bool,
    upstream: String,
    /// The time of day of the second that was last written.
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

    fn write(&mut self, text: &mut String, line: Line) {
        match line {
            Line::Made(line) => text.push_str(&line),
            Line::Happened { at, event } if self.json => text.push_str(&machine(at, &event)),
            Line::Happened { at, event } => {
                if self.clock.0 != at.as_second() {
                    let time = at.to_zoned(TimeZone::system()).strftime("%H:%M:%S");
                    self.clock = (at.as_second(), time.to_string());
                }
                self.human(text, &event);
            }
        }
    }

    /// Write what a request was, which may happen tens of thousands of times in a second.
    fn request(&self, text: &mut String, log: &RequestRecord) {
        let status = log
            .status
            .and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.as_ref().map_or("---", StatusCode::as_str);
        let (paint, plain) = match log.status {
            _ if !self.color => ("", ""),
            Some(..300) => ("\x1b[32m", PLAIN),
            Some(300..400) => ("\x1b[36m", PLAIN),
            Some(400..500) => ("\x1b[33m", PLAIN),
            _ => ("\x1b[31m", PLAIN),
        };
        let method = escape(log.method.as_str());
        let gap = &COLUMN[method.len().min(COLUMN.len())..];
        let (clock, path) = (&self.clock.1, escape(&log.target));
        for part in [
            clock, "  ", &method, gap, " ", &path, "  ", paint, status, plain, "  ",
        ] {
            text.push_str(part);
        }
        text.push_str(&brief(log.duration));
        text.push_str("  ");
        text.push_str(&size(log.sent));
        if log.received > 0 {
            text.push_str(&format!(" (in {})", size(log.received)));
        }
        if let Some(problem) = &log.problem {
            text.push_str("  ");
            text.push_str(&escape(problem));
        }
    }

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
                    word(transport.carrier),
                    figures(transport)
                )
            }
            Event::Transport(transport) => format!(
                "{clock}  {} ({})",
                escape(&transport.reason),
                figures(transport)
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

fn machine(at: Timestamp, event: &Event) -> String {
    let value = match event {
        Event::Ready { tunnels, transport } => {
            let mut value = transported("ready", transport);
            value["url"] = json!(tunnels.first().and_then(|tunnel| tunnel.urls.first()));
            value["tunnels"] = tunnels
                .iter()
                .map(|tunnel| json!({ "name": tunnel.name, "urls": tunnel.urls }))
                .collect();
            value
        }
        Event::Transport(transport) => transported("transport", transport),
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

fn transported(event: &str, transport: &LinkStats) -> Value {
    json!({
        "event": event,
        "transport": word(transport.carrier),
        "reason": escape(&transport.reason),
        "rtt_ms": transport.rtt.as_secs_f64() * 1e3,
        "sent_packets": transport.sent_packets,
        "lost_packets": transport.lost_packets,
        "mtu": transport.mtu,
    })
}

/// How good a path is: its round trip time, losses and largest packet.
pub fn figures(transport: &LinkStats) -> String {
    let lost = match transport.sent_packets {
        0 => 0.0,
        sent => transport.lost_packets as f64 / sent as f64 * 100.0,
    };
    format!(
        "round trip {}, {lost:.1} % lost, packets of up to {} bytes",
        brief(transport.rtt),
        transport.mtu
    )
}

/// A carrier, in the word that `--transport` knows it by.
pub fn word(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Udp => "quic",
        Carrier::WebSocket => "websocket",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn brief(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 60.. => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        1.. => decimal(millis(time), 1_000, " s"),
        0 => decimal(time.subsec_micros().into(), 1_000, " ms"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => decimal(bytes, 1_000_000_000, " GB"),
        1_000_000.. => decimal(bytes, 1_000_000, " MB"),
        1_000.. => decimal(bytes, 1_000, " kB"),
        _ => format!("{bytes} B"),
    }
}

/// Write a number of units, which are many of something smaller, with one decimal. In whole numbers: a float takes
/// `fmt` some seven hundred instructions, and each request has two.
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

/// What ends a colour.
const PLAIN: &str = "\x1b[0m";

/// The width of most methods, in blanks.
const COLUMN: &str = "       ";

/// Lines that may wait for the terminal.
const QUEUE: usize = 4096;

/// How long the last lines may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long the lines of a busy tunnel gather to be written at once. A system call for each, and
/// waking this thread for it, took a fifth of the agent's time.
const TOGETHER: Duration = Duration::from_millis(10);

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
            assert_eq!(brief(Duration::from_micros(micros)), text);
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
            assert_eq!(size(bytes), text);
        }
    }
}
