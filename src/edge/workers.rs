//! The worker threads of an edge.
//!
//! Each has its own single-threaded runtime: a session stays on one of them, and visitors of its
//! tunnels are moved there, so that no request waits for another thread's lock or wakes another
//! thread. With one worker, it is the thread that everything starts on.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::runtime::runtime;

/// The runtimes that work may be spawned on.
#[derive(Debug, Clone)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    sessions: AtomicUsize,
}

/// The worker threads besides the first one. Dropping this stops them, with everything that still
/// runs there.
#[derive(Debug)]
pub struct WorkerThreads {
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Workers {
    /// Start `count` workers; the calling thread is the first of them.
    ///
    /// # Errors
    /// Returns the system's error if it cannot start another thread or runtime.
    pub fn start(count: NonZeroUsize) -> io::Result<(Self, WorkerThreads)> {
        let stop = CancellationToken::new();
        let mut worker_threads = WorkerThreads {
            threads: Vec::new(),
            stop: stop.clone(),
        };
        let mut runtimes = vec![Handle::current()];
        for number in 1..count.get() {
            let runtime = runtime()?;
            runtimes.push(runtime.handle().clone());
            let stop = stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    runtime.block_on(stop.cancelled());
                    // Do not wait for blocking tasks.
                    runtime.shutdown_background();
                })?;
            worker_threads.threads.push(thread);
        }
        let workers = runtimes.into_iter().map(|runtime| Worker {
            runtime,
            sessions: AtomicUsize::new(0),
        });
        Ok((Self(workers.collect()), worker_threads))
    }

    /// Report whether there is only one worker.
    pub fn is_one(&self) -> bool {
        self.0.len() == 1
    }

    /// Reserve a slot for a session on the worker that has the fewest.
    pub fn slot(&self) -> WorkerSlot {
        let sessions = |number: &usize| self.0[*number].sessions.load(Ordering::Relaxed);
        let worker = (0..self.0.len()).min_by_key(sessions).unwrap_or(0);
        self.0[worker].sessions.fetch_add(1, Ordering::Relaxed);
        WorkerSlot {
            workers: self.clone(),
            worker,
        }
    }

    /// Return the runtime of a worker.
    pub fn runtime(&self, worker: usize) -> &Handle {
        &self.0[worker].runtime
    }
}

/// A session's slot on a worker, freed when this is dropped.
#[derive(Debug)]
pub struct WorkerSlot {
    workers: Workers,
    /// Index of the worker.
    pub worker: usize,
}

impl WorkerSlot {
    /// Return the runtime that the session runs on.
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
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}
