//! TLS: certificates of the edge, their verification by the agent, and the local CA.

mod ca;
mod cipher;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
mod identity;
mod per_name;
mod pin;
mod rejection;
mod trust;

pub use self::ca::{CaError, LocalCa, local_ca};
pub use self::identity::{Identity, IdentityError};
pub use self::pin::{Pin, PinError};
pub use self::rejection::explain;
pub use self::trust::{LastRejection, Trust, TrustError, proxy_config, upstream_config};

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// Return the cryptography provider that everything uses: the fastest ciphers for this processor
/// first, and the post-quantum key exchange (X25519MLKEM768) first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    cipher::fastest_first(&mut provider.cipher_suites, cipher::aes_in_hardware());
    Arc::new(provider)
}
