//! A static file server: a directory as an upstream.

pub(crate) mod beneath;
pub(crate) mod disk;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use ::http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
    RETRY_AFTER,
};
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Empty;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tokio_util::sync::ReusableBoxFuture;
use tower_http::services::ServeDir;
use tower_http::services::fs::{Backend, File, Metadata};

use self::beneath::{Entry, FileInfo, is_hidden};
use self::disk::Disk;
use super::{Service, UpstreamBody};

/// Create a service that serves the files beneath a directory, with ranges, conditional requests and `index.html` as
/// in `tower-http`, but nothing outside the directory and no hidden files.
pub fn service(directory: &Path) -> Service {
    let beneath = Beneath {
        root: directory.into(),
        disk: Disk::new(),
    };
    let files = ServeDir::with_backend("", beneath)
        .append_index_html_on_directories(true)
        // A server may ignore multiple ranges, and send the whole file (RFC 9110 §14.2).
        .ignore_multi_range_requests(true);
    Service::new(move |request: Request<UpstreamBody>| {
        let mut files = files.clone();
        async move {
            let (mut parts, _) = request.into_parts();
            if is_forbidden(parts.uri.path()) {
                return Ok(status_page(StatusCode::NOT_FOUND));
            }
            if !has_byte_range(&parts.method, &parts.headers) {
                parts.headers.remove(RANGE);
            }
            let if_range = parts.headers.remove(IF_RANGE);
            let mut result = files
                .try_call(Request::from_parts(parts.clone(), Empty::<Bytes>::new()))
                .await;
            let is_stale = match (&if_range, &result) {
                (Some(validator), Ok(partial)) => !is_current(validator, partial.headers()),
                _ => false,
            };
            if is_stale && parts.headers.remove(RANGE).is_some() {
                // The visitor has a part of another version, and needs all of this one (RFC 9110 §13.1.5).
                let whole = Request::from_parts(parts.clone(), Empty::<Bytes>::new());
                result = files.try_call(whole).await;
            }
            let response = match result {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                    status_page(StatusCode::NOT_FOUND)
                }
                Ok(response) if response.status() == StatusCode::TEMPORARY_REDIRECT => {
                    redirect_to_directory(&parts.uri)
                }
                Ok(response) => with_exact_length(response.map(UpstreamBody::new), &parts.method),
                Err(err) => error_response(&err),
            };
            Ok(response)
        }
    })
}

/// Report whether a request has a valid range: in bytes, and with the method GET (RFC 9110 §14.2).
fn has_byte_range(method: &Method, headers: &HeaderMap) -> bool {
    let range = headers.get(RANGE).map(HeaderValue::as_bytes);
    let unit = range.and_then(|range| range.split(|byte| *byte == b'=').next());
    method == Method::GET && unit.is_some_and(|unit| unit.eq_ignore_ascii_case(b"bytes"))
}

/// Report whether an `If-Range` validator matches this version, by strong comparison of entity tags or by the exact
/// date.
fn is_current(validator: &HeaderValue, headers: &HeaderMap) -> bool {
    let name = match validator.as_bytes() {
        tag if tag.starts_with(b"W/") => return false,
        tag if tag.starts_with(b"\"") => ETAG,
        _ => LAST_MODIFIED,
    };
    headers.get(name) == Some(validator)
}

/// Redirect to the path of a directory, with a slash at its end. The location starts with exactly one slash and no
/// backslash: otherwise browsers would take the rest for a host.
fn redirect_to_directory(uri: &Uri) -> Response<UpstreamBody> {
    let path = uri.path().trim_start_matches(['/', '\\']);
    let location = match uri.query() {
        Some(query) => format!("/{path}/?{query}"),
        None => format!("/{path}/"),
    };
    let mut response = status_page(StatusCode::TEMPORARY_REDIRECT);
    match HeaderValue::try_from(location) {
        Ok(location) => response.headers_mut().insert(LOCATION, location),
        Err(_) => return status_page(StatusCode::NOT_FOUND),
    };
    response
}

/// Build the response for a file error, without internal details.
fn error_response(err: &io::Error) -> Response<UpstreamBody> {
    match err.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename => status_page(StatusCode::NOT_FOUND),
        io::ErrorKind::ResourceBusy | io::ErrorKind::TimedOut => {
            let mut response = status_page(StatusCode::SERVICE_UNAVAILABLE);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("30"));
            response
        }
        _ => status_page(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Build a plain-text response with only the status.
fn status_page(status: StatusCode) -> Response<UpstreamBody> {
    let mut response = Response::new(UpstreamBody::full(
        format!("{status}\n").to_ascii_lowercase(),
    ));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// Give the body the exact length that `Content-Length` states, so that the length is known before it is sent.
fn with_exact_length(response: Response<UpstreamBody>, method: &Method) -> Response<UpstreamBody> {
    let length = response.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    match length {
        Some(left) if method != Method::HEAD => {
            response.map(|body| UpstreamBody::new(Sized { body, left }))
        }
        _ => response,
    }
}

/// A body with a known length.
struct Sized {
    body: UpstreamBody,
    left: u64,
}

impl Body for Sized {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, Bytes::len) as u64;
            self.left = self.left.saturating_sub(length);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Report whether a path has a hidden segment, also with a percent-encoded dot, or a percent-encoded separator or NUL.
fn is_forbidden(path: &str) -> bool {
    path.split(['/', '\\']).enumerate().any(|(at, segment)| {
        let lower = segment.to_ascii_lowercase();
        let is_encoded = lower.contains("%2f") || lower.contains("%5c") || lower.contains("%00");
        // The first segment is empty: every path starts with a slash.
        is_encoded || is_hidden(&lower.replace("%2e", "."), at.saturating_sub(1))
    })
}

/// The file system backend for `tower-http`: the files beneath a directory.
#[derive(Clone)]
struct Beneath {
    root: Arc<Path>,
    disk: Disk,
}

impl Backend for Beneath {
    type File = Opened;
    type Metadata = FileInfo;
    type OpenFuture = BoxFuture<'static, io::Result<Opened>>;
    type MetadataFuture = BoxFuture<'static, io::Result<FileInfo>>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let (root, disk) = (self.root.clone(), self.disk.clone());
        Box::pin(async move {
            let opened = disk.run(move || {
                let entry = beneath::open(&root, &path)?;
                let info = entry.info()?;
                match entry {
                    Entry::File(file) => Ok((file, info)),
                    Entry::Directory => Err(io::ErrorKind::NotFound.into()),
                }
            });
            let (file, info) = opened.await?;
            Ok(Opened {
                file: Arc::new(file),
                info,
                at: 0,
                disk,
                reading: None,
            })
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let (root, disk) = (self.root.clone(), self.disk.clone());
        Box::pin(async move { disk.run(move || beneath::open(&root, &path)?.info()).await })
    }
}

impl Metadata for FileInfo {
    fn is_dir(&self) -> bool {
        self.is_directory
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.modified
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> u64 {
        self.length
    }
}

/// An open file, read up to the length that it had when it was opened.
struct Opened {
    file: Arc<std::fs::File>,
    info: FileInfo,
    /// The offset of the next read.
    at: u64,
    disk: Disk,
    reading: Option<ReusableBoxFuture<'static, io::Result<Vec<u8>>>>,
}

impl File for Opened {
    type Metadata = FileInfo;
    type MetadataFuture<'a> = std::future::Ready<io::Result<FileInfo>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        std::future::ready(Ok(self.info))
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = this.info.length.saturating_sub(this.at);
        let wanted = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buf.remaining())
            .min(READ_SIZE);
        if wanted == 0 {
            return Poll::Ready(Ok(()));
        }
        let reading = this.reading.get_or_insert_with(|| {
            let (file, at, disk) = (this.file.clone(), this.at, this.disk.clone());
            ReusableBoxFuture::new(async move { disk.run(move || read(&file, at, wanted)).await })
        });
        let read = ready!(reading.poll(cx));
        this.reading = None;
        let read = read?;
        // The caller polls again with as much room as before.
        let read = &read[..read.len().min(buf.remaining())];
        if read.is_empty() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was being sent",
            )));
        }
        buf.put_slice(read);
        this.at += read.len() as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Opened {
    fn start_seek(mut self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        self.at = match position {
            io::SeekFrom::Start(at) => at,
            io::SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            io::SeekFrom::End(by) => self.info.length.saturating_add_signed(by),
        };
        self.reading = None;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.at))
    }
}

/// Read up to `wanted` bytes at an offset.
fn read(file: &std::fs::File, at: u64, wanted: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; wanted];
    #[cfg(unix)]
    let read = std::os::unix::fs::FileExt::read_at(file, &mut buffer, at)?;
    #[cfg(windows)]
    let read = std::os::windows::fs::FileExt::seek_read(file, &mut buffer, at)?;
    buffer.truncate(read);
    Ok(buffer)
}

/// The bytes of one read: the buffer size of `tower-http`.
const READ_SIZE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::is_forbidden;

    #[test]
    fn hidden_files_and_encoded_paths_to_them_are_forbidden() {
        for path in [
            "/.git/config",
            "/a/.env",
            "/%2egit/config",
            "/../x",
            "/a/..%2f..%2fetc",
            "/a%5c..",
            "/x/.well-known/y",
        ] {
            assert!(is_forbidden(path), "{path}");
        }
        for path in ["/", "/a.b/c.html", "/.well-known/security.txt", "/a..b"] {
            assert!(!is_forbidden(path), "{path}");
        }
    }
}
