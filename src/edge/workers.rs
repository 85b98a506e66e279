//! The threads of an edge.
//!
//! Each has a runtime of its own and nothing to do with the others: a session stays on one of them,
//! and visitors of its tunnels are brought there, so that no request waits for another thread's lock
//! or wakes one up. Where there is one worker, it is the thread that everything begins on.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::runtime::runtime;

/// Where work may go.
#[derive(Debug, Clone)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    sessions: AtomicUsize,
}

/// The threads besides the first one. They end when this is dropped, with all that still runs there.
#[derive(Debug)]
pub struct WorkerThreads {
    threads: Vec<JoinHandle<()>>,
    end: CancellationToken,
}

impl Workers {
    /// Start so many, of which this thread is the first.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub fn start(count: NonZeroUsize) -> io::Result<(Self, WorkerThreads)> {
        let end = CancellationToken::new();
        let mut crew = WorkerThreads {
            threads: Vec::new(),
            end: end.clone(),
        };
        let mut runtimes = vec![Handle::current()];
        for number in 1..count.get() {
            let runtime = runtime()?;
            runtimes.push(runtime.handle().clone());
            let end = end.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    runtime.block_on(end.cancelled());
                    // Without waiting for what blocks.
                    runtime.shutdown_background();
                })?;
            crew.threads.push(thread);
        }
        let workers = runtimes.into_iter().map(|runtime| Worker {
            runtime,
            sessions: AtomicUsize::new(0),
        });
        Ok((Self(workers.collect()), crew))
    }

    /// Report whether there is no choice.
    pub fn is_one(&self) -> bool {
        self.0.len() == 1
    }

    /// Take a place for a session where there are fewest.
    pub fn slot(&self) -> WorkerSlot {
        let sessions = |number: &usize| self.0[*number].sessions.load(Ordering::Relaxed);
        let worker = (0..self.0.len()).min_by_key(sessions).unwrap_or(0);
        self.0[worker].sessions.fetch_add(1, Ordering::Relaxed);
        WorkerSlot {
            workers: self.clone(),
            worker,
        }
    }

    /// Return what runs the work of that worker.
    pub fn runtime(&self, worker: usize) -> &Handle {
        &self.0[worker].runtime
    }
}

/// A session's place, until it is dropped.
#[derive(Debug)]
pub struct WorkerSlot {
    workers: Workers,
    /// The number of the worker.
    pub worker: usize,
}

impl WorkerSlot {
    /// Return what runs the session.
    pub fn runtime(&self) -> &Handle {
        self.workers.runtime(self.worker)
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.workers.0[self.worker]
            .sessions
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        self.end.cancel();
        for thread in self.threads.drain(..) {
            // It says itself when it panics.
            let _ = thread.join();
        }
    }
}
