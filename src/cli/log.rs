//! The formatting of log fields. Everything that is logged is escaped and truncated here, so that no text from a peer,
//! a visitor or an upstream can end a line, colour a terminal or flood it, whichever error contains it.

use std::error::Error;
use std::fmt;

use qtunnel::{chain, escape};
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Formats the message and the fields of an event or a span, each escaped and of bounded length.
pub struct SafeFields;

impl<'writer> FormatFields<'writer> for SafeFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = FieldWriter {
            writer,
            started: false,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

/// Writes fields to one log line.
struct FieldWriter<'writer> {
    writer: Writer<'writer>,
    /// A field has been written, so that the next one needs a blank before it.
    started: bool,
    /// The first error, after which nothing is written.
    result: fmt::Result,
}

impl FieldWriter<'_> {
    /// Write a field, unless an earlier one failed.
    fn field(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.write(field.name(), value);
        }
    }

    /// Write a field, escaped and truncated. The message has no name.
    fn write(&mut self, name: &str, value: &str) -> fmt::Result {
        if std::mem::replace(&mut self.started, true) {
            self.writer.write_char(' ')?;
        }
        match (name, self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, false) => write!(self.writer, "{name}=")?,
            (name, true) => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
        }
        let shown = escape(truncated(value));
        self.writer.write_str(&shown)?;
        match truncated(value).len() < value.len() {
            true => self.writer.write_char('…'),
            false => Ok(()),
        }
    }
}

impl Visit for FieldWriter<'_> {
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.field(field, &chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, &format!("{value:?}"));
    }
}

/// Return the start of a value, up to [`MAX_VALUE`].
fn truncated(value: &str) -> &str {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

/// The longest value in bytes: an error with all its causes fits.
const MAX_VALUE: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{info, info_span};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(event: impl FnOnce()) -> String {
        let written = Written::default();
        let to = written.clone();
        let lines = tracing_subscriber::fmt()
            .fmt_fields(SafeFields)
            .with_writer(move || to.clone())
            .with_ansi(false)
            .without_time()
            .finish();
        tracing::subscriber::with_default(lines, event);
        let bytes = written.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_log_event_is_always_one_line() {
        let forged = "x\r\nINFO forged\x1b[2J\u{9b}\u{202e}";
        let err = io::Error::other(forged);

        let text = logged(|| {
            let _span = info_span!("peer", name = %forged).entered();
            info!(%err, reason = %forged, err = &err as &dyn Error, "said {forged}");
        });

        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text}");
        assert!(text.contains("reason=x\\u{d}\\u{a}INFO forged"), "{text}");
    }

    #[test]
    fn a_long_value_is_truncated() {
        let text = logged(|| info!(reason = %"é".repeat(MAX_VALUE), "long"));

        assert!(text.len() < MAX_VALUE + 100, "{}", text.len());
        assert!(text.ends_with("…\n"));
    }
}
