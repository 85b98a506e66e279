//! Conversations that have no end of their own, event streams and what follows an upgrade: at rest, they do not
//! keep an edge that stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::edge::shutdown::Draining;
use crate::stream::Activity;

/// Wait until the edge stops and nothing has moved for [`REST`] since. With a successor nobody waits for the end
/// of this process, and visitors keep what they have for the whole grace period.
pub async fn at_rest(draining: Draining, activity: Arc<Activity>) {
    draining.stopped().await;
    let stopped = Instant::now();
    loop {
        let rested = activity.last().max(stopped) + REST;
        if rested <= Instant::now() {
            return;
        }
        sleep_until(rested).await;
    }
}

/// How long event streams, WebSockets and handshakes may rest before they do not keep an edge that stops. It is
/// longer than what most chats and games let pass between two messages.
pub const REST: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_keeps_the_edge_and_what_rests_does_not() {
        let (draining, activity) = (Draining::default(), Arc::new(Activity::start()));
        let mut rest = tokio::spawn(at_rest(draining.clone(), activity.clone()));
        assert!(timeout(10 * REST, &mut rest).await.is_err(), "not stopped");

        draining.stop();
        for _ in 0..10 {
            sleep(REST / 2).await;
            activity.record(1);
        }
        assert!(!rest.is_finished());
        let quiet = Instant::now();

        rest.await.unwrap();
        assert_eq!(quiet.elapsed(), REST);
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_successor_nothing_is_cut_for_its_rest() {
        let draining = Draining::default();
        let rest = at_rest(draining.clone(), Arc::new(Activity::start()));

        draining.succeed();

        assert!(timeout(100 * REST, rest).await.is_err());
    }
}
