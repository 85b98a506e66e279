//! The conversations of one session: how many there are, whose, and who waits for one.
//!
//! An agent serves so many at a time. They are shared between visitors and between its tunnels; who has its share
//! waits a while for others to end, in a queue of which everybody has a share as well (HAProxy's `maxconn` with
//! `timeout queue`; nginx's `limit_conn` refuses at once, and with it the bursts of honest browsers). And when few
//! are left, answers whose visitors have long stopped reading make room.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::client::Client;
use super::connection_limit::Turn;
use super::fair_share::{Denied, FairShare, Holder};
use super::http::error_page::Fault;

/// The conversations of a session.
#[derive(Debug)]
pub struct Conversations(Mutex<State>);

#[derive(Debug)]
struct State {
    share: FairShare,
    /// Places in the queue.
    queue: FairShare,
    waiting: VecDeque<Waiting>,
    /// Answers under way.
    answers: HashMap<u64, Answer>,
    /// How often each tunnel is published.
    tunnels: HashMap<u32, usize>,
    /// While fewer places are free, answers that stand still are given up.
    plenty: usize,
    /// What the next conversation or waiting request is called.
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    holders: Holders,
    admit: oneshot::Sender<Admission>,
}

#[derive(Debug)]
struct Answer {
    holder: Holder,
    body: Weak<dyn Evict>,
}

/// An answer that can be given up from outside. It does not own its place: dropping it must not want the lock.
pub trait Evict: Send + Sync + std::fmt::Debug {
    /// Return since when its visitor has not taken what is there.
    fn stalled_since(&self) -> Option<Instant>;

    /// Give it up.
    fn evict(&self);
}

/// All that a conversation counts for.
type Holders = Vec<Holder>;

impl Conversations {
    /// Share so many conversations.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            share: FairShare::new(most),
            queue: FairShare::new(MOST_WAITING),
            waiting: VecDeque::new(),
            answers: HashMap::new(),
            tunnels: HashMap::new(),
            plenty: most / PLENTY,
            next: 0,
        })))
    }

    /// Share them with this tunnel too, until the returned value is dropped.
    pub fn publish(self: &Arc<Self>, tunnel: u32) -> Published {
        *self.lock().tunnels.entry(tunnel).or_default() += 1;
        Published {
            conversations: self.clone(),
            tunnel,
        }
    }

    async fn admit(self: &Arc<Self>, client: Client, tunnel: u32) -> Result<Admission, Fault> {
        self.relieve();
        let (queued, mut admitted) = {
            let mut state = self.lock();
            let holders = state.holders(client, tunnel);
            let denied = match state.share.take(holders.iter().copied()) {
                Ok(()) => return Ok(state.admission(self, holders)),
                Err(denied) => denied,
            };
            if state.queue.take(client.holders()).is_err() {
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            let again = deadline.min(Instant::now() + LOOK_AGAIN);
            tokio::select! {
                biased;
                Ok(admission) = &mut admitted => return Ok(admission),
                () = sleep_until(again) => {}
            }
            self.relieve();
            if again == deadline {
                // What was admitted in this moment is taken nevertheless.
                return admitted.try_recv().map_err(|_| queued.denied.into());
            }
        }
    }

    /// Free a place, and let those in who waited for it.
    fn release(self: &Arc<Self>, id: u64, holders: &Holders) {
        let mut state = self.lock();
        state.answers.remove(&id);
        state.share.give_back(holders.iter().copied());
        state.admit_waiting(self);
    }

    /// While few places are left, give up an answer that stands still.
    fn relieve(&self) {
        // To give it up frees its place, which wants the lock.
        let stalled = self.lock().worst_stalled();
        if let Some(answer) = stalled {
            answer.evict();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holders(&self, client: Client, tunnel: u32) -> Holders {
        // Alone, a tunnel has nobody to leave anything to.
        let tunnel = (self.tunnels.len() > 1).then_some(Holder::Tunnel(tunnel));
        client.holders().chain(tunnel).collect()
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn admission(&mut self, conversations: &Arc<Conversations>, holders: Holders) -> Admission {
        Admission {
            conversations: conversations.clone(),
            id: self.id(),
            holders,
            turn: None,
        }
    }

    /// Let those in, in the order of their arrival, who have less than their share.
    fn admit_waiting(&mut self, conversations: &Arc<Conversations>) {
        let mut next = 0;
        while self.share.free() > 0
            && let Some(waiting) = self.waiting.get(next)
        {
            if self.share.take(waiting.holders.iter().copied()).is_err() {
                next += 1;
                continue;
            }
            let Some(waiting) = self.waiting.remove(next) else {
                return;
            };
            let admission = self.admission(conversations, waiting.holders);
            if let Err(admission) = waiting.admit.send(admission) {
                // It waits no longer. Its drop would want the lock that we have.
                self.share.give_back(admission.forget().into_iter());
            }
        }
    }

    /// While few places are left, find an answer whose visitor has stopped reading: one of whoever has most, and of
    /// these the one that has stood still for the longest time.
    fn worst_stalled(&mut self) -> Option<Arc<dyn Evict>> {
        if self.share.free() >= self.plenty {
            return None;
        }
        let limit = Instant::now().checked_sub(STALLED)?;
        let stalled = self.answers.iter().filter_map(|(id, answer)| {
            let body = answer.body.upgrade()?;
            let since = body.stalled_since().filter(|since| *since <= limit)?;
            let held = self.share.held(answer.holder);
            Some((held, Reverse(since), *id, body))
        });
        let (held, since, id, body) = stalled.max_by_key(|(held, since, ..)| (*held, *since))?;
        debug!(stalled = ?since.0.elapsed(), held, "an answer that nobody reads makes room");
        self.answers.remove(&id);
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

/// A tunnel among those that share a session's conversations.
#[derive(Debug)]
pub struct Published {
    conversations: Arc<Conversations>,
    tunnel: u32,
}

impl Published {
    /// Get a place for a conversation of this client, or wait for one.
    ///
    /// # Errors
    /// [`Fault::TooManyConversations`] if the client has its share, [`Fault::Busy`] if the tunnel has, or all
    /// places are taken.
    pub async fn admit(&self, client: Client) -> Result<Admission, Fault> {
        self.conversations.admit(client, self.tunnel).await
    }
}

impl Drop for Published {
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

/// A place in the queue, until it is dropped.
struct Queued<'a> {
    conversations: &'a Arc<Conversations>,
    client: Client,
    id: u64,
    denied: Denied,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = self.conversations.lock();
        state.queue.give_back(self.client.holders());
        let position = state
            .waiting
            .iter()
            .position(|waiting| waiting.id == self.id);
        if let Some(position) = position {
            state.waiting.remove(position);
        }
    }
}

/// The place of a conversation, until it is dropped.
#[derive(Debug)]
pub struct Admission {
    conversations: Arc<Conversations>,
    id: u64,
    holders: Holders,
    /// What it counts for with all agents together.
    turn: Option<Turn>,
}

impl Admission {
    /// Let it count, for as long as it lasts, with all agents together.
    pub fn count(&mut self, turn: Turn) {
        self.turn = Some(turn);
    }

    /// Let the answer be given up when its visitor does not read it and others need the place.
    pub fn watch(&self, body: Weak<dyn Evict>) {
        if let Some(holder) = self.holders.first() {
            let answer = Answer {
                holder: *holder,
                body,
            };
            self.conversations.lock().answers.insert(self.id, answer);
        }
    }

    /// Drop it without giving anything back.
    fn forget(mut self) -> Holders {
        std::mem::take(&mut self.holders)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.holders.is_empty() {
            self.conversations.release(self.id, &self.holders);
        }
    }
}

/// How long a request waits for a conversation: longer than an honest burst takes, shorter than a visitor's patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a request that waits sees whether an answer stands still.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Requests that wait for a conversation of one session. A client has no more of these places than it leaves free.
const MOST_WAITING: usize = 512;

/// While less than this part of all places is free, answers that stand still are given up.
const PLENTY: usize = 4;

/// How long an answer must have stood still for that. Kernels report room in steps of a third of their buffer: on a
/// slow connection, seconds pass between two of them.
const STALLED: Duration = Duration::from_secs(5);
