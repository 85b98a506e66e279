//! A request on its way to the agent, until its answer has begun.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;
use http_body::Body;
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug};

use super::body::TunnelAnswer;
use super::body::VisitorBody;
use super::error_page::Fault;
use super::forward::Forward;
use super::paced_body::BodyError;
use super::request_body::RequestBody;
use crate::edge::names::registry::LiveTunnel;
use crate::edge::visitors::conversations::Admission;
use crate::error_chain::chain;
use crate::http::ReplayBuffer;
use crate::proto::{
    BodyLength, HttpVersion, INFORMATIONAL_LIMIT, RequestHead, ResponseHead, StreamHead, WireError,
};
use crate::stream::{
    Activity, ReceiveError, ReceiveWindow, Receiver, SendError, SendWindow, Sender,
};

/// A request that can be sent, and sent again as long as little of its body is gone.
pub struct Outbound {
    head: StreamHead,
    /// The protocols that the visitor asked for. Which of them may be had, the tunnel says.
    wanted: Option<String>,
    body: Option<ReplayBuffer<RequestBody>>,
    /// Whether the visitor waits to be told that the body is wanted.
    expects: bool,
}

/// Why there is no answer to a request that was sent.
pub enum DeliveryError {
    /// The session was lost before the agent could have got the whole head.
    NotSent,
    /// The session was lost with the request on the stream of this index.
    Lost {
        /// The index.
        stream: u64,
    },
    /// Something else.
    Fault(Fault),
}

impl Outbound {
    /// Prepare a request.
    pub fn new(head: RequestHead, body: RequestBody, expects: bool) -> Self {
        let (length, wanted) = (head.body, head.upgrade.clone());
        Self {
            body: (wanted.is_none() && length != BodyLength::Empty)
                .then(|| ReplayBuffer::new(body)),
            head: StreamHead::Http(head),
            wanted,
            expects,
        }
    }

    /// Return about how much memory the request takes.
    pub fn size(&self) -> usize {
        let StreamHead::Http(head) = &self.head;
        let fields = head.fields.0.iter();
        let fields: usize = fields
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
            .sum();
        let kept = self.body.as_ref().and_then(ReplayBuffer::kept);
        head.target.len() + fields + kept.unwrap_or(0)
    }

    /// Report whether all of it is still here.
    pub fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.kept().is_some())
    }

    /// Keep no more of the body than has to be sent, and wait for it as long as it takes: the answer is
    /// here. Returns the protocols that the agent was asked for.
    pub fn settle(self) -> Option<String> {
        if let Some(body) = self.body {
            body.settle();
            body.change(RequestBody::unlimit);
        }
        let StreamHead::Http(head) = self.head;
        head.upgrade
    }

    /// Begin to send on a new stream.
    pub async fn send(
        &mut self,
        tunnel: &LiveTunnel,
        place: Place,
        patience: Duration,
    ) -> Result<PendingResponse, DeliveryError> {
        let Place {
            admission,
            send,
            receive,
        } = place;
        let stream = send.id().index();
        let window = ReceiveWindow::new(tunnel.flow.clone(), stream);
        let StreamHead::Http(head) = &mut self.head;
        head.tunnel = tunnel.number;
        let wanted = self.wanted.as_deref();
        head.upgrade = wanted.and_then(|wanted| tunnel.upgrades.select(wanted));
        let upgrade = head.upgrade.is_some();
        if wanted.is_some() && !upgrade && head.version == HttpVersion::Http2 {
            // Over HTTP/1.1 the request goes on as if it had not asked (RFC 9110 §7.8); this one is nothing
            // without it.
            return Err(DeliveryError::Fault(Fault::UpgradeNotAllowed));
        }
        head.window = u32::try_from(window.limit()).unwrap_or(u32::MAX);
        let to_send = SendWindow::new(tunnel.flow.clone(), stream, window.limit());
        let mut sender = Sender::new(send, to_send);
        sender.head(&self.head).await.map_err(|err| {
            debug!(err = &err as &dyn std::error::Error, "head not sent");
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
        let mut exchange = PendingResponse {
            receiver: Receiver::new(receive, window),
            sender: None,
            admission,
            upload: None,
            wanted: Arc::new(Notify::new()),
        };
        match &self.body {
            None if upgrade => exchange.sender = Some(sender),
            None => sender.finish(),
            Some(body) => {
                if !self.expects {
                    exchange.wanted.notify_one();
                }
                let wanted = exchange.wanted.clone();
                exchange.upload = Some(Box::pin(upload(sender, body.read(), wanted, patience)));
            }
        }
        Ok(exchange)
    }
}

/// A place among a session's conversations, and its stream.
pub struct Place {
    pub admission: Admission,
    pub send: SendStream,
    pub receive: RecvStream,
}

/// A request that is being sent and whose response is awaited.
pub struct PendingResponse {
    pub receiver: Receiver,
    /// Kept for what follows an upgrade.
    pub sender: Option<Sender>,
    pub admission: Admission,
    upload: Option<Upload>,
    /// Says that the body may be read: `Expect: 100-continue` is end to end.
    wanted: Arc<Notify>,
}

impl PendingResponse {
    /// Wait for the final head, passing informational ones on, while the body is being sent.
    /// It fails without a fault if the session is lost.
    pub async fn head(&mut self, forward: &Forward) -> Result<ResponseHead, Option<Fault>> {
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
                    let err = WireError::Invalid("there are too many informational answers");
                    self.receiver.violated(&err);
                    return Err(Some(Fault::AgentLost));
                }
                Ok(ResponseHead::Informational {
                    status: StatusCode::CONTINUE,
                    ..
                }) => self.wanted.notify_one(),
                Ok(ResponseHead::Informational { status, fields }) => {
                    forward.hint(status, fields.0)
                }
                Ok(head) => return Ok(head),
                Err(ReceiveError::Wire(err)) => {
                    debug!(%err, "the agent's answer is not understood");
                    if err != WireError::Truncated {
                        self.receiver.violated(&err);
                    }
                    return Err(Some(Fault::AgentLost));
                }
                Err(ReceiveError::Stream(ReadError::Reset(code))) => {
                    // The agent is there: its upstream broke off before anything had left.
                    debug!(%code, "the answer was given up");
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

    /// Make the response's body; the rest of the request's goes on being sent meanwhile.
    pub fn into_body(self, length: BodyLength) -> VisitorBody {
        match length {
            BodyLength::Empty => VisitorBody::Empty,
            _ => VisitorBody::Tunnel {
                answer: {
                    let window = self.receiver.window();
                    let activity = Arc::new(Activity::start());
                    let body = self.receiver.into_body(length, activity);
                    TunnelAnswer::new(body, window, self.admission)
                },
                // From here on it has a task of its own: a visitor may go on sending while it does not
                // read, which would stop whoever polls the response. It ends with the response.
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

/// A request's body on its way to the agent. It fails only if the visitor is to hear of it.
type Upload = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

/// Send a request's body once it is wanted.
async fn upload<B>(
    mut sender: Sender,
    body: B,
    wanted: Arc<Notify>,
    patience: Duration,
) -> Result<(), Fault>
where
    B: Body<Data = Bytes, Error = BodyError<hyper::Error>> + Unpin,
{
    // An upstream that does not know `Expect` says nothing, and gets the body all the same.
    let _ = timeout(patience, wanted.notified()).await;
    let Err(err) = sender.body(body, &Activity::start()).await else {
        return Ok(());
    };
    debug!(err = %chain(&err), "the request's body was not sent to its end");
    match err {
        SendError::Body(err) if is_too_slow(&*err) => Err(Fault::BodyTooSlow),
        _ => Ok(()),
    }
}

fn is_too_slow(err: &(dyn std::error::Error + 'static)) -> bool {
    let err = err.downcast_ref::<BodyError<hyper::Error>>();
    err.is_some_and(|err| matches!(err, BodyError::TooSlow))
}

/// What a field takes besides its name and value.
const FIELD: usize = 32;
