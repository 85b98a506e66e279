//! The end of idle conversations without an end of their own (event streams, and what follows an upgrade), so that
//! they do not keep an edge from stopping.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::edge::shutdown::Draining;
use crate::stream::Activity;

/// Wait until the edge stops and nothing has been transferred for [`IDLE_TIMEOUT`] since. With a successor it waits for
/// ever: nobody waits for the end of this process, and visitors keep what they have for the whole grace period.
pub async fn idle_after_stop(draining: Draining, activity: Arc<Activity>) {
    draining.stopped().await;
    let stopped = Instant::now();
    loop {
        let idle_at = activity.last().max(stopped) + IDLE_TIMEOUT;
        if idle_at <= Instant::now() {
            return;
        }
        sleep_until(idle_at).await;
    }
}

/// Idle time after which event streams, WebSockets and TLS handshakes are cut when the edge stops. Longer than the gap
/// between two messages of most chats and games.
pub const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_keeps_the_edge_and_what_rests_does_not() {
        let (draining, activity) = (Draining::default(), Arc::new(Activity::start()));
        let mut rest = tokio::spawn(idle_after_stop(draining.clone(), activity.clone()));
        assert!(
            timeout(10 * IDLE_TIMEOUT, &mut rest).await.is_err(),
            "not stopped"
        );

        draining.stop();
        for _ in 0..10 {
            sleep(IDLE_TIMEOUT / 2).await;
            activity.record(1);
        }
        assert!(!rest.is_finished());
        let quiet = Instant::now();

        rest.await.unwrap();
        assert_eq!(quiet.elapsed(), IDLE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_successor_nothing_is_cut_for_its_rest() {
        let draining = Draining::default();
        let rest = idle_after_stop(draining.clone(), Arc::new(Activity::start()));

        draining.hand_over();

        assert!(timeout(100 * IDLE_TIMEOUT, rest).await.is_err());
    }
}
