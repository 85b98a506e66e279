//! The conversations of one session: limits on them, fair shares, and a queue for requests that
//! wait for one.
//!
//! An agent serves a limited number at a time. They are shared fairly between visitors and between
//! its tunnels; a request beyond its share waits a while for others to end, in a queue that is
//! shared fairly as well (HAProxy's `maxconn` with `timeout queue`; nginx's `limit_conn` refuses at
//! once, and with it the bursts of honest browsers). And when few places are left, responses whose
//! visitors have stopped reading are evicted.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::client::Client;
use super::connection_limit::VisitorPermit;
use super::fair_share::{Denied, FairShare, Holder};
use crate::edge::fault::Fault;

/// The conversations of a session.
#[derive(Debug)]
pub struct Conversations(Mutex<State>);

#[derive(Debug)]
struct State {
    share: FairShare,
    /// Shares of the places in the queue.
    queue: FairShare,
    waiting: VecDeque<Waiting>,
    /// Responses under way.
    responses: HashMap<u64, TrackedResponse>,
    /// Number of times each tunnel is published.
    tunnels: HashMap<u32, usize>,
    /// Number of free places below which stalled responses are evicted.
    scarce: usize,
    /// Identifier of the latest conversation or waiting request.
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    holders: Holders,
    admit: oneshot::Sender<ConversationPermit>,
}

#[derive(Debug)]
struct TrackedResponse {
    holder: Holder,
    body: Weak<dyn Evict>,
}

/// A response that can be aborted from outside. It must not own its permit: dropping it under the
/// lock would need the lock again.
pub trait Evict: Send + Sync + std::fmt::Debug {
    /// Return since when the visitor has taken none of the data that is ready; `None` if it is not
    /// stalled.
    fn stalled_since(&self) -> Option<Instant>;

    /// Abort the response.
    fn evict(&self);
}

/// All holders that a conversation counts for.
type Holders = Vec<Holder>;

impl Conversations {
    /// Share `max` conversations.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            share: FairShare::new(max),
            queue: FairShare::new(MAX_WAITING),
            waiting: VecDeque::new(),
            responses: HashMap::new(),
            tunnels: HashMap::new(),
            scarce: max / SCARCE_FRACTION,
            next: 0,
        })))
    }

    /// Share the conversations with this tunnel too, until the returned value is dropped.
    pub fn publish(self: &Arc<Self>, tunnel: u32) -> TunnelConversations {
        *self.lock().tunnels.entry(tunnel).or_default() += 1;
        TunnelConversations {
            conversations: self.clone(),
            tunnel,
        }
    }

    /// Reserve a conversation for a client and tunnel, or wait for one.
    async fn admit(
        self: &Arc<Self>,
        client: Client,
        tunnel: u32,
    ) -> Result<ConversationPermit, Fault> {
        self.evict_stalled();
        let (queued, mut admitted) = {
            let mut state = self.lock();
            let holders = state.holders(client, tunnel);
            let denied = match state.share.acquire(holders.iter().copied()) {
                Ok(()) => return Ok(state.permit(self, holders)),
                Err(denied) => denied,
            };
            if state.queue.acquire(client.holders()).is_err() {
                return Err(denied.into());
            }
            let (admit, admitted) = oneshot::channel();
            let id = state.id();
            state.waiting.push_back(Waiting { id, holders, admit });
            let queued = Queued {
                conversations: self,
                client,
                id,
                denied,
            };
            (queued, admitted)
        };
        let deadline = Instant::now() + QUEUE_TIMEOUT;
        loop {
            let next_check = deadline.min(Instant::now() + STALL_CHECK_INTERVAL);
            tokio::select! {
                biased;
                Ok(permit) = &mut admitted => return Ok(permit),
                () = sleep_until(next_check) => {}
            }
            self.evict_stalled();
            if next_check == deadline {
                // A permit that was granted at this very moment is used.
                return admitted.try_recv().map_err(|_| queued.denied.into());
            }
        }
    }

    /// Release a place, and admit requests that wait for it.
    fn release(self: &Arc<Self>, id: u64, holders: &Holders) {
        let mut state = self.lock();
        state.responses.remove(&id);
        state.share.release(holders.iter().copied());
        state.admit_waiting(self);
    }

    /// While few places are free, evict a stalled response.
    fn evict_stalled(&self) {
        // Evicting releases the permit, which needs the lock.
        let stalled = self.lock().worst_stalled();
        if let Some(response) = stalled {
            response.evict();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Return all holders that a conversation counts for.
    fn holders(&self, client: Client, tunnel: u32) -> Holders {
        // A tunnel without siblings need not leave them anything.
        let tunnel = (self.tunnels.len() > 1).then_some(Holder::Tunnel(tunnel));
        client.holders().chain(tunnel).collect()
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn permit(
        &mut self,
        conversations: &Arc<Conversations>,
        holders: Holders,
    ) -> ConversationPermit {
        ConversationPermit {
            conversations: conversations.clone(),
            id: self.id(),
            holders,
            visitor: None,
        }
    }

    /// Admit waiting requests in the order of arrival, skipping those whose holders have their
    /// share.
    fn admit_waiting(&mut self, conversations: &Arc<Conversations>) {
        let mut next = 0;
        while self.share.free() > 0
            && let Some(waiting) = self.waiting.get(next)
        {
            if self.share.acquire(waiting.holders.iter().copied()).is_err() {
                next += 1;
                continue;
            }
            let Some(waiting) = self.waiting.remove(next) else {
                return;
            };
            let permit = self.permit(conversations, waiting.holders);
            if let Err(permit) = waiting.admit.send(permit) {
                // The request has stopped waiting. Dropping its permit would need the lock that is
                // held here.
                self.share.release(permit.forget().into_iter());
            }
        }
    }

    /// While few places are free, find a stalled response: one of the holder that has most places,
    /// and of these the one stalled for longest.
    fn worst_stalled(&mut self) -> Option<Arc<dyn Evict>> {
        if self.share.free() >= self.scarce {
            return None;
        }
        let limit = Instant::now().checked_sub(STALL_TIMEOUT)?;
        let stalled = self.responses.iter().filter_map(|(id, response)| {
            let body = response.body.upgrade()?;
            let since = body.stalled_since().filter(|since| *since <= limit)?;
            let held = self.share.held(response.holder);
            Some((held, Reverse(since), *id, body))
        });
        let (held, since, id, body) = stalled.max_by_key(|(held, since, ..)| (*held, *since))?;
        debug!(stalled = ?since.0.elapsed(), held, "evicting a response that its visitor does not read");
        self.responses.remove(&id);
        Some(body)
    }
}

impl From<Denied> for Fault {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Full | Denied::Share(Holder::Tunnel(_)) => Self::Busy,
            Denied::Share(_) => Self::TooManyConversations,
        }
    }
}

/// One tunnel's share in a session's conversations.
#[derive(Debug)]
pub struct TunnelConversations {
    conversations: Arc<Conversations>,
    tunnel: u32,
}

impl TunnelConversations {
    /// Reserve a conversation for this client, or wait for one up to [`QUEUE_TIMEOUT`].
    ///
    /// # Errors
    /// [`Fault::TooManyConversations`] if the client has its share, [`Fault::Busy`] if the tunnel
    /// has, or no place is free.
    pub async fn admit(&self, client: Client) -> Result<ConversationPermit, Fault> {
        self.conversations.admit(client, self.tunnel).await
    }
}

impl Drop for TunnelConversations {
    fn drop(&mut self) {
        let mut state = self.conversations.lock();
        if let Some(times) = state.tunnels.get_mut(&self.tunnel) {
            *times -= 1;
            if *times == 0 {
                state.tunnels.remove(&self.tunnel);
            }
        }
    }
}

/// A place in the queue, released when this is dropped.
struct Queued<'a> {
    conversations: &'a Arc<Conversations>,
    client: Client,
    id: u64,
    denied: Denied,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = self.conversations.lock();
        state.queue.release(self.client.holders());
        let position = state
            .waiting
            .iter()
            .position(|waiting| waiting.id == self.id);
        if let Some(position) = position {
            state.waiting.remove(position);
        }
    }
}

/// Permit for one conversation, released when this is dropped.
#[derive(Debug)]
pub struct ConversationPermit {
    conversations: Arc<Conversations>,
    id: u64,
    holders: Holders,
    /// Place among the visitor's conversations with all agents.
    visitor: Option<VisitorPermit>,
}

impl ConversationPermit {
    /// Attach the permit for the same conversation among those with all agents, to be released
    /// together with this one.
    pub fn attach(&mut self, visitor: VisitorPermit) {
        self.visitor = Some(visitor);
    }

    /// Allow the response to be evicted when its visitor does not read it and others need the
    /// place.
    pub fn watch(&self, body: Weak<dyn Evict>) {
        if let Some(holder) = self.holders.first() {
            let response = TrackedResponse {
                holder: *holder,
                body,
            };
            self.conversations
                .lock()
                .responses
                .insert(self.id, response);
        }
    }

    /// Drop the permit without releasing it.
    fn forget(mut self) -> Holders {
        std::mem::take(&mut self.holders)
    }
}

impl Drop for ConversationPermit {
    fn drop(&mut self) {
        if !self.holders.is_empty() {
            self.conversations.release(self.id, &self.holders);
        }
    }
}

/// Longest time that a request waits for a conversation: longer than an honest burst takes, and
/// shorter than a visitor's patience.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval at which a waiting request looks for stalled responses.
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Most requests that wait for a conversation of one session. A client has no more of these places
/// than it leaves free.
const MAX_WAITING: usize = 512;

/// Stalled responses are evicted while less than one in this many places is free.
const SCARCE_FRACTION: usize = 4;

/// Time without progress after which a response counts as stalled. Kernels report free space in
/// steps of a third of their buffer: on a slow connection, seconds pass between two of them.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
