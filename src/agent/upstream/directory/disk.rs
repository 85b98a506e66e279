//! File operations on a bounded number of blocking threads: an operation on a dead file server never returns.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Runs blocking operations, at most [`MAX_OPERATIONS`] at a time.
#[derive(Clone)]
pub struct Disk(Arc<Semaphore>);

impl Disk {
    /// Create an executor without operations.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_OPERATIONS)))
    }

    /// Run one operation on a blocking thread.
    ///
    /// # Errors
    /// The error of the operation; [`io::ErrorKind::ResourceBusy`] if no thread is free within [`QUEUE_TIMEOUT`], and
    /// [`io::ErrorKind::TimedOut`] if the operation takes longer than [`OPERATION_TIMEOUT`]. Its thread stays occupied
    /// until it ends.
    pub async fn run<T, F>(&self, operation: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let permit = match timeout(QUEUE_TIMEOUT, self.0.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(io::ErrorKind::ResourceBusy.into()),
        };
        let running = spawn_blocking(move || {
            // Released when the thread is free, which may be long after the timeout.
            let _permit = permit;
            operation()
        });
        match timeout(OPERATION_TIMEOUT, running).await {
            Ok(Ok(done)) => done,
            Ok(Err(panicked)) => Err(io::Error::other(panicked)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The most concurrent operations: far fewer than the threads of the runtime's blocking pool (512), which is also
/// used for name resolution.
const MAX_OPERATIONS: usize = 16;

/// Time for which an operation waits for a thread: by then the others have most likely hung.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that opening a file or reading a part of it may take: a disk that spins up needs about ten seconds.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn operations_that_hang_are_bounded_and_later_ones_fail() {
        let disk = Disk::new();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let mut hanging = tokio::task::JoinSet::new();
        for _ in 0..MAX_OPERATIONS {
            let (disk, held) = (disk.clone(), held.clone());
            hanging.spawn(async move {
                disk.run(move || {
                    let _ = held.lock().map(|held| held.recv());
                    Ok(())
                })
                .await
            });
        }
        // The paused clock does not advance by itself while a blocking thread is busy.
        yield_now().await;
        advance(OPERATION_TIMEOUT).await;
        while let Some(ended) = hanging.join_next().await {
            let err = ended.unwrap().unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        }

        let waiting = disk.clone();
        let one_more = tokio::spawn(async move { waiting.run(|| Ok(())).await });
        yield_now().await;
        advance(QUEUE_TIMEOUT).await;

        let err = one_more.await.unwrap().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ResourceBusy);
        drop(release);
    }
}
