//! As much of HTTP/2 (RFC 9113) as it takes to be a nuisance.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest flow-control window there is.
pub const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// What a client begins with: its preface, a window for each stream, and one for the connection.
pub fn opening(window: u32) -> Vec<u8> {
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = [&INITIAL_WINDOW_SIZE[..], &window.to_be_bytes()].concat();
    opening.extend(frame(SETTINGS, 0, 0, &settings));
    let more = LARGEST_WINDOW - DEFAULT_WINDOW;
    opening.extend(frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()));
    opening
}

/// A whole request without a body.
pub fn get(stream: u32, host: &str, target: &str) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &head(METHOD_GET, host, target),
    )
}

/// A head whose rest never comes.
pub fn half_a_head(stream: u32, host: &str, target: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM, stream, &head(METHOD_GET, host, target))
}

/// A request whose body never comes.
pub fn post(stream: u32, host: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(METHOD_POST, host, "/"))
}

/// Read what comes, until the end, and answer what a living client answers.
pub async fn answer_pings<S>(io: &mut S) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut payload = Vec::new();
    loop {
        let mut header = [0; 9];
        io.read_exact(&mut header).await?;
        let [a, b, c, kind, flags, ..] = header;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        ensure!(length <= LONGEST_FRAME, "a frame of {length} bytes");
        payload.resize(length, 0);
        io.read_exact(&mut payload).await?;
        let answer = match kind {
            PING if flags & ACK == 0 => frame(PING, ACK, 0, &payload),
            SETTINGS if flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
            _ => continue,
        };
        io.write_all(&answer).await?;
        io.flush().await?;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields in HPACK's plainest form (RFC 7541): from the static table where they are there, otherwise a name from it
/// and a value as it is.
fn head(method: u8, host: &str, target: &str) -> Vec<u8> {
    const SCHEME_HTTPS: u8 = 0x87;
    const AUTHORITY: u8 = 1;
    const PATH: u8 = 4;
    let mut head = vec![method, SCHEME_HTTPS];
    for (name, value) in [(AUTHORITY, host), (PATH, target)] {
        // A length up to 126 is one byte.
        let value = &value.as_bytes()[..value.len().min(126)];
        head.extend([name, value.len() as u8]);
        head.extend(value);
    }
    head
}

const METHOD_GET: u8 = 0x82;
const METHOD_POST: u8 = 0x83;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection's window at the beginning.
const DEFAULT_WINDOW: u32 = 65_535;

/// What a peer may send that was not told of larger frames.
const LONGEST_FRAME: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_how_long_it_is_and_whose() {
        assert_eq!(
            frame(PING, ACK, 0, b"12345678"),
            b"\0\0\x08\x06\x01\0\0\0\x0012345678"
        );
    }

    #[tokio::test]
    async fn pings_are_answered_until_the_end() {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs
            .write_all(&frame(PING, 0, 0, b"12345678"))
            .await
            .unwrap();
        theirs
            .write_all(&frame(HEADERS, END_HEADERS, 1, &[0x88]))
            .await
            .unwrap();
        theirs.shutdown().await.unwrap();

        assert!(answer_pings(&mut ours).await.is_err());

        drop(ours);
        let mut answered = Vec::new();
        theirs.read_to_end(&mut answered).await.unwrap();
        assert_eq!(answered, frame(PING, ACK, 0, b"12345678"));
    }
}
