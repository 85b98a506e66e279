//! A link in virtual time, with quinn's own state machines at its ends: the result is a pure
//! function of the link and a seed. No clock, no sockets, no tasks.

mod host;
mod link;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::ControllerFactory;

pub(crate) use self::link::{Link, Loss, Rng};

use self::host::Host;
use self::link::{Packet, Pipe};

/// Two directions of a link, and the connections that share them. Data goes forward, unless stated
/// otherwise.
pub(crate) struct LinkModel {
    start: Instant,
    now: Instant,
    forward: Pipe<LinkDatagram>,
    backward: Pipe<LinkDatagram>,
    flows: Vec<Flow>,
    agenda: BinaryHeap<Reverse<(Instant, u64, LinkEvent)>>,
    arriving: std::collections::HashMap<u64, LinkDatagram>,
    serial: u64,
    /// Queueing delay that a packet would have had, every [`SAMPLE`].
    backlogs: Vec<Duration>,
}

/// Index of a connection, in the order of [`LinkModel::add`].
pub(crate) type FlowId = usize;

struct Flow {
    ends: [Host; 2],
    /// Direction of its data.
    forward: bool,
    wakes: [Option<Instant>; 2],
    /// Bytes received at the end of each [`SAMPLE`].
    progress: Vec<u64>,
}

struct LinkDatagram {
    flow: FlowId,
    to: usize,
    data: Vec<u8>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum LinkEvent {
    Wake { flow: FlowId, end: usize },
    Serve { forward: bool },
    Arrive,
    Sample,
}

const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// Bytes of IPv4 and UDP headers per packet.
const HEADERS: u64 = 28;

/// Interval between samples of progress and backlog.
const SAMPLE: Duration = Duration::from_millis(5);

impl LinkModel {
    pub(crate) fn new(forward: Link, backward: Link, seed: u64) -> Self {
        let start = Instant::now();
        let mut model = Self {
            start,
            now: start,
            forward: Pipe::new(forward, start, seed),
            backward: Pipe::new(backward, start, seed ^ 0x5eed),
            flows: Vec::new(),
            agenda: BinaryHeap::new(),
            arriving: std::collections::HashMap::new(),
            serial: 0,
            backlogs: Vec::new(),
        };
        model.schedule(start + SAMPLE, LinkEvent::Sample);
        model
    }

    /// Create a model with the same link in both directions.
    pub(crate) fn symmetric(link: &Link, seed: u64) -> Self {
        Self::new(link.clone(), link.clone(), seed)
    }

    /// Connect and start sending now.
    pub(crate) fn add(
        &mut self,
        controller: Arc<dyn ControllerFactory + Send + Sync>,
        bytes: u64,
    ) -> FlowId {
        self.add_towards(true, controller, bytes)
    }

    /// Connect and start sending in the other direction now.
    pub(crate) fn add_backward(
        &mut self,
        controller: Arc<dyn ControllerFactory + Send + Sync>,
        bytes: u64,
    ) -> FlowId {
        self.add_towards(false, controller, bytes)
    }

    fn add_towards(
        &mut self,
        forward: bool,
        controller: Arc<dyn ControllerFactory + Send + Sync>,
        bytes: u64,
    ) -> FlowId {
        let id = self.flows.len();
        let port = 1 + id as u16;
        let addrs = (([10, 0, 0, 1], port).into(), ([10, 0, 0, 2], port).into());
        let seed = id as u8;
        self.flows.push(Flow {
            ends: [
                Host::sender(self.now, addrs, controller, bytes, seed),
                Host::receiver(addrs, seed + 100),
            ],
            forward,
            wakes: [None; 2],
            progress: vec![0; self.backlogs.len()],
        });
        self.drive(id, SENDER);
        id
    }

    /// Give a connection more to send.
    pub(crate) fn offer(&mut self, flow: FlowId, bytes: u64) {
        self.flows[flow].ends[SENDER].offer(bytes);
        self.drive(flow, SENDER);
    }

    /// Advance the time.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Advance the time until this many bytes have been received, by at most `limit`. Return the
    /// time that took.
    pub(crate) fn run_until_received(
        &mut self,
        flow: FlowId,
        bytes: u64,
        limit: Duration,
    ) -> Option<Duration> {
        let (begin, until) = (self.now, self.now + limit);
        while self.flows[flow].ends[RECEIVER].received < bytes {
            if !self.step(until) {
                return None;
            }
        }
        Some(self.now - begin)
    }

    /// Return the time since the model was created.
    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Return the application bytes per second of a connection between two moments.
    pub(crate) fn goodput(&self, flow: FlowId, from: Duration, to: Duration) -> f64 {
        let progress = &self.flows[flow].progress;
        let at = |time: Duration| match time.div_duration_f64(SAMPLE) as usize {
            0 => 0,
            samples => progress
                .get(samples - 1)
                .or(progress.last())
                .map_or(0, |&bytes| bytes),
        };
        (at(to) - at(from)) as f64 / (to - from).as_secs_f64()
    }

    /// Return a quantile over time of the forward queue's delay.
    pub(crate) fn queue_over_time(&self, quantile: f64, from: Duration) -> Duration {
        let skip = from.div_duration_f64(SAMPLE) as usize;
        quantile_of(self.backlogs.iter().skip(skip).copied().collect(), quantile)
    }

    /// Return a quantile over packets of the forward queue's delay.
    pub(crate) fn queue_over_packets(&self, quantile: f64, from: Duration) -> Duration {
        let from = self.start + from;
        let waits = self.forward.waits.iter().filter(|&&(at, _)| at >= from);
        quantile_of(waits.map(|&(_, wait)| wait).collect(), quantile)
    }

    /// Return the packets dropped because the forward queue was full.
    pub(crate) fn overflowed(&self) -> u64 {
        self.forward.overflowed
    }

    fn step(&mut self, until: Instant) -> bool {
        let Some(Reverse((at, serial, event))) = self.agenda.pop() else {
            return false;
        };
        if at > until {
            self.agenda.push(Reverse((at, serial, event)));
            return false;
        }
        self.now = at;
        match event {
            LinkEvent::Wake { flow, end } => {
                if self.flows[flow].wakes[end] == Some(at) {
                    self.flows[flow].wakes[end] = None;
                    self.drive(flow, end);
                }
            }
            LinkEvent::Serve { forward } => self.serve(forward),
            LinkEvent::Arrive => {
                let datagram = self
                    .arriving
                    .remove(&serial)
                    .expect("scheduled with its event");
                self.flows[datagram.flow].ends[datagram.to].arrive(at, &datagram.data);
                // Everything that arrives at the same time is processed before anything is sent.
                self.wake(datagram.flow, datagram.to, at);
            }
            LinkEvent::Sample => {
                self.backlogs.push(self.forward.backlog(at));
                for flow in &mut self.flows {
                    flow.progress.push(flow.ends[RECEIVER].received);
                }
                self.schedule(at + SAMPLE, LinkEvent::Sample);
            }
        }
        true
    }

    fn serve(&mut self, forward: bool) {
        let pipe = if forward {
            &mut self.forward
        } else {
            &mut self.backward
        };
        let (arrival, next) = pipe.serve(self.now);
        if let Some((due, datagram)) = arrival {
            let serial = self.schedule(due, LinkEvent::Arrive);
            self.arriving.insert(serial, datagram);
        }
        if let Some(next) = next {
            self.schedule(next, LinkEvent::Serve { forward });
        }
    }

    fn drive(&mut self, flow: FlowId, end: usize) {
        let mut out = Vec::new();
        let wake = self.flows[flow].ends[end].drive(self.now, &mut out);
        let forward = (end == SENDER) == self.flows[flow].forward;
        for data in out {
            let packet = Packet {
                bytes: data.len() as u64 + HEADERS,
                load: LinkDatagram {
                    flow,
                    to: 1 - end,
                    data,
                },
            };
            let pipe = if forward {
                &mut self.forward
            } else {
                &mut self.backward
            };
            if let Some(serve) = pipe.push(self.now, packet) {
                self.schedule(serve, LinkEvent::Serve { forward });
            }
        }
        if let Some(at) = wake {
            self.wake(flow, end, at.max(self.now + Duration::from_nanos(1)));
        } else {
            self.flows[flow].wakes[end] = None;
        }
    }

    /// Schedule an end at that time, instead of any later one.
    fn wake(&mut self, flow: FlowId, end: usize, at: Instant) {
        let planned = &mut self.flows[flow].wakes[end];
        if *planned != Some(at) {
            *planned = Some(at);
            self.schedule(at, LinkEvent::Wake { flow, end });
        }
    }

    fn schedule(&mut self, at: Instant, event: LinkEvent) -> u64 {
        self.serial += 1;
        self.agenda.push(Reverse((at, self.serial, event)));
        self.serial
    }
}

fn quantile_of(mut values: Vec<Duration>, quantile: f64) -> Duration {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * quantile) as usize)
        .copied()
        .unwrap_or_default()
}
