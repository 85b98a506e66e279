//! One attempt to send a request to the agent, until its response begins.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use http_body::Body;
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug};

use super::body::TunnelResponse;
use super::body::VisitorBody;
use super::idle::idle_after_stop;
use super::paced_body::BodyError;
use super::request_body::RequestBody;
use crate::edge::fault::Fault;
use crate::edge::names::tunnel::LiveTunnel;
use crate::edge::shutdown::Draining;
use crate::edge::visitors::conversations::ConversationPermit;
use crate::error_chain::chain;
use crate::http::ReplayBuffer;
use crate::proto::{
    BodyLength, HttpVersion, INFORMATIONAL_LIMIT, RequestHead, ResponseHead, StreamHead, WireError,
};
use crate::stream::{
    Activity, BufferTotal, ReceiveError, ReceiveWindow, Receiver, SendError, SendWindow, Sender,
};

/// A request that can be sent, and sent again as long as the beginning of its body is buffered.
pub struct Outbound {
    head: StreamHead,
    /// Protocols that the visitor asks to upgrade to. The tunnel decides which of them are allowed.
    requested_upgrade: Option<String>,
    body: Option<ReplayBuffer<RequestBody>>,
    /// The visitor waits for `100 Continue` before it sends the body.
    expects_continue: bool,
}

/// Reason why a request that was sent got no response.
pub enum DeliveryError {
    /// The session was lost before the agent could have received the whole head.
    NotSent,
    /// The session was lost with the request under way.
    Lost {
        /// Index of the stream that carried it.
        stream: u64,
    },
    /// Another fault, which ends the request.
    Fault(Fault),
}

impl Outbound {
    /// Create a request from its head and body, whose beginning is buffered as long as `total` has
    /// room. `expects_continue` means that the visitor waits for `100 Continue`.
    pub fn new(
        head: RequestHead,
        body: RequestBody,
        total: &Arc<BufferTotal>,
        expects_continue: bool,
    ) -> Self {
        let (length, requested_upgrade) = (head.body, head.upgrade.clone());
        let has_body = requested_upgrade.is_none() && length != BodyLength::Empty;
        Self {
            body: has_body.then(|| ReplayBuffer::within(total.clone(), body)),
            head: StreamHead::Http(head),
            requested_upgrade,
            expects_continue,
        }
    }

    /// Return the approximate memory that the request takes, in bytes.
    pub fn size(&self) -> usize {
        let StreamHead::Http(head) = &self.head;
        let fields = head.fields.0.iter();
        let fields: usize = fields
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD_MEMORY)
            .sum();
        let buffered = self.body.as_ref().and_then(ReplayBuffer::buffered);
        head.target.len() + fields + buffered.unwrap_or(0)
    }

    /// Report whether the request can still be sent from its beginning.
    pub fn is_replayable(&self) -> bool {
        self.body
            .as_ref()
            .is_none_or(|body| body.buffered().is_some())
    }

    /// Stop buffering the body, and lift its time limit, because the response has begun. Returns
    /// the protocols that the agent was asked to upgrade to.
    pub fn stop_buffering(self) -> Option<String> {
        if let Some(body) = self.body {
            body.stop_buffering();
            body.change(RequestBody::unlimit);
        }
        let StreamHead::Http(head) = self.head;
        head.upgrade
    }

    /// Send the head on a new stream, and prepare to send the body.
    pub async fn send(
        &mut self,
        tunnel: &LiveTunnel,
        admitted: AdmittedStream,
        continue_timeout: Duration,
    ) -> Result<PendingResponse, DeliveryError> {
        let AdmittedStream {
            permit,
            send,
            receive,
        } = admitted;
        let stream = send.id().index();
        let window = ReceiveWindow::new(tunnel.flow.clone(), stream);
        let StreamHead::Http(head) = &mut self.head;
        head.tunnel = tunnel.number;
        let requested = self.requested_upgrade.as_deref();
        head.upgrade = requested.and_then(|requested| tunnel.upgrades.select(requested));
        let upgrade = head.upgrade.is_some();
        if requested.is_some() && !upgrade && head.version == HttpVersion::Http2 {
            // Over HTTP/1.1 the request goes on as if it had not asked (RFC 9110 §7.8); an extended
            // CONNECT is meaningless without the protocol.
            return Err(DeliveryError::Fault(Fault::UpgradeNotAllowed));
        }
        head.window = u32::try_from(window.limit()).unwrap_or(u32::MAX);
        let to_send = SendWindow::new(tunnel.flow.clone(), stream, window.limit());
        let mut sender = Sender::new(send, to_send);
        sender.head(&self.head).await.map_err(|err| {
            debug!(
                err = &err as &dyn std::error::Error,
                "the request head was not sent"
            );
            match err {
                SendError::Wire(WireError::TooLong { .. }) => DeliveryError::Fault(
                    Fault::BadRequest(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
                ),
                SendError::Wire(_) => {
                    DeliveryError::Fault(Fault::BadRequest(StatusCode::BAD_REQUEST))
                }
                SendError::Stream(WriteError::ConnectionLost(_)) => DeliveryError::NotSent,
                _ => DeliveryError::Fault(Fault::AgentLost),
            }
        })?;
        let mut pending = PendingResponse {
            receiver: Receiver::new(receive, window),
            sender: None,
            permit,
            upload: None,
            body_wanted: Arc::new(Notify::new()),
        };
        match &self.body {
            None if upgrade => pending.sender = Some(sender),
            None => sender.finish(),
            Some(body) => {
                if !self.expects_continue {
                    pending.body_wanted.notify_one();
                }
                let body_wanted = pending.body_wanted.clone();
                pending.upload = Some(Box::pin(upload(
                    sender,
                    body.read(),
                    body_wanted,
                    continue_timeout,
                )));
            }
        }
        Ok(pending)
    }
}

/// A new stream of a session, with its permit.
pub struct AdmittedStream {
    pub permit: ConversationPermit,
    pub send: SendStream,
    pub receive: RecvStream,
}

/// A request that is being sent and whose response is awaited.
pub struct PendingResponse {
    pub receiver: Receiver,
    /// The sending side, kept for the raw bytes after an upgrade.
    pub sender: Option<Sender>,
    pub permit: ConversationPermit,
    upload: Option<Upload>,
    /// Notified when the body may be read: `Expect: 100-continue` is end to end.
    body_wanted: Arc<Notify>,
}

impl PendingResponse {
    /// Send the body and wait for the final head, passing informational (1xx) ones to `inform`. Fails
    /// with `None` if the session is lost.
    pub async fn head(
        &mut self,
        inform: impl Fn(StatusCode, HeaderMap),
    ) -> Result<ResponseHead, Option<Fault>> {
        let mut informational = 0;
        loop {
            let head = tokio::select! {
                head = self.receiver.head() => head,
                sent = async { self.upload.as_mut().expect("checked by the guard").await }, if self.upload.is_some() => {
                    self.upload = None;
                    sent.map_err(Some)?;
                    continue;
                }
            };
            let is_informational = matches!(head, Ok(ResponseHead::Informational { .. }));
            informational += usize::from(is_informational);
            match head {
                Ok(_) if is_informational && informational > INFORMATIONAL_LIMIT => {
                    let err = WireError::Invalid("there are too many informational responses");
                    self.receiver.report_violation(&err);
                    return Err(Some(Fault::AgentLost));
                }
                Ok(ResponseHead::Informational {
                    status: StatusCode::CONTINUE,
                    ..
                }) => self.body_wanted.notify_one(),
                Ok(ResponseHead::Informational { status, fields }) => {
                    inform(status, fields.0);
                }
                Ok(head) => return Ok(head),
                Err(ReceiveError::Wire(err)) => {
                    debug!(%err, "the agent's response violates the protocol");
                    if err != WireError::Truncated {
                        self.receiver.report_violation(&err);
                    }
                    return Err(Some(Fault::AgentLost));
                }
                Err(ReceiveError::Stream(ReadError::Reset(code))) => {
                    // The agent is connected: its upstream broke off before any response was sent.
                    debug!(%code, "the agent reset the response");
                    return Err(Some(Fault::UpstreamInvalid));
                }
                Err(ReceiveError::Stream(ReadError::ConnectionLost(err))) => {
                    debug!(%err, "the session was lost");
                    return Err(None);
                }
                Err(err) => {
                    debug!(%err, "the agent was lost");
                    return Err(Some(Fault::AgentLost));
                }
            }
        }
    }

    /// Make the response's body, while the rest of the request's is still being sent. A response
    /// without an end of its own does not keep an edge from stopping, if its shutdown state is given.
    pub fn into_body(self, length: BodyLength, draining: Option<Draining>) -> VisitorBody {
        match length {
            BodyLength::Empty => VisitorBody::Empty,
            _ => VisitorBody::Tunnel {
                response: {
                    let window = self.receiver.window();
                    let activity = Arc::new(Activity::start());
                    let body = self.receiver.into_body(length, activity.clone());
                    let response = TunnelResponse::new(body, window, self.permit);
                    match draining {
                        Some(draining) => response.until(idle_after_stop(draining, activity)),
                        None => response,
                    }
                },
                // The upload gets a task of its own: a visitor may go on sending while it does not
                // read, which would block whoever polls the response. The task ends with the
                // response.
                _upload: self.upload.map(|upload| {
                    let upload = async move {
                        let _ = upload.await;
                    };
                    AbortOnDropHandle::new(tokio::spawn(upload.in_current_span()))
                }),
            },
        }
    }
}

/// The upload of a request's body. Fails only with a fault that the visitor must see.
type Upload = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

/// Send a request's body once it is asked for, or `continue_timeout` has passed.
async fn upload<B>(
    mut sender: Sender,
    body: B,
    body_wanted: Arc<Notify>,
    continue_timeout: Duration,
) -> Result<(), Fault>
where
    B: Body<Data = Bytes, Error = BodyError<hyper::Error>> + Unpin,
{
    // An upstream that ignores `Expect` gets the body nevertheless.
    let _ = timeout(continue_timeout, body_wanted.notified()).await;
    let Err(err) = sender.body(body, &Activity::start()).await else {
        return Ok(());
    };
    debug!(err = %chain(&err), "the request body was not sent completely");
    match err {
        SendError::Body(err) if is_too_slow(&*err) => Err(Fault::BodyTooSlow),
        _ => Ok(()),
    }
}

fn is_too_slow(err: &(dyn std::error::Error + 'static)) -> bool {
    let err = err.downcast_ref::<BodyError<hyper::Error>>();
    err.is_some_and(|err| matches!(err, BodyError::TooSlow))
}

/// Estimated memory of a field besides its name and value, in bytes.
const FIELD_MEMORY: usize = 32;
