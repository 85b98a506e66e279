//! Work on files, on a bounded number of threads: one that waits for a dead file server waits for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Runs what may block, so many at a time.
#[derive(Clone)]
pub struct Disk(Arc<Semaphore>);

impl Disk {
    /// Make one with no work yet.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(OPERATIONS)))
    }

    /// Run one operation on a thread where it may block.
    ///
    /// # Errors
    /// Those of the operation; [`io::ErrorKind::ResourceBusy`] if all threads are taken for too long, and
    /// [`io::ErrorKind::TimedOut`] if the operation does not end. Its thread stays taken until it does.
    pub async fn run<T, F>(&self, operation: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let permit = match timeout(QUEUE, self.0.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(io::ErrorKind::ResourceBusy.into()),
        };
        let running = spawn_blocking(move || {
            // Given back when the thread is free, which may be long after nobody waits any more.
            let _permit = permit;
            operation()
        });
        match timeout(OPERATION, running).await {
            Ok(Ok(done)) => done,
            Ok(Err(panicked)) => Err(io::Error::other(panicked)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Threads that wait for files at a time. Far fewer than the runtime's pool has (512), from which names are
/// looked up too.
const OPERATIONS: usize = 16;

/// How long an operation may wait for a thread: the others have hung by then, most likely.
const QUEUE: Duration = Duration::from_secs(10);

/// How long opening a file or reading a piece of it may take: a disk that spins up needs some ten seconds.
const OPERATION: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn operations_that_never_end_are_bounded_and_the_others_are_told() {
        let disk = Disk::new();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let mut hanging = tokio::task::JoinSet::new();
        for _ in 0..OPERATIONS {
            let (disk, held) = (disk.clone(), held.clone());
            hanging.spawn(async move {
                disk.run(move || {
                    let _ = held.lock().map(|held| held.recv());
                    Ok(())
                })
                .await
            });
        }
        // Time does not go by itself while a thread is busy.
        yield_now().await;
        advance(OPERATION).await;
        while let Some(ended) = hanging.join_next().await {
            let err = ended.unwrap().unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        }

        let waiting = disk.clone();
        let one_more = tokio::spawn(async move { waiting.run(|| Ok(())).await });
        yield_now().await;
        advance(QUEUE).await;

        let err = one_more.await.unwrap().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ResourceBusy);
        drop(release);
    }
}
