//! Everything above the carriers is tested over each of them.

/// Run a test over each carrier: as `name::udp` and as `name::websocket`. What stands behind the name
/// goes to `tokio::test`.
macro_rules! on_each_carrier {
    ($test:ident $(, $runtime:meta)*) => {
        mod $test {
            #[tokio::test($($runtime),*)]
            async fn udp() {
                super::$test(qtunnel::Carrier::Udp).await;
            }

            #[tokio::test($($runtime),*)]
            async fn websocket() {
                super::$test(qtunnel::Carrier::WebSocket).await;
            }
        }
    };
}
