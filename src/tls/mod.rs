//! TLS: how the edge proves who it is, and how the agent checks it.

mod ca;
mod cipher;
mod distrust;
#[cfg(all(unix, any(test, fuzzing)))]
pub mod fuzzing;
mod identity;
mod per_name;
mod pin;
mod trust;

pub use self::ca::{CaError, LocalCa, local_ca};
pub use self::identity::{Identity, IdentityError};
pub use self::pin::{Pin, PinError};
pub use self::trust::{Distrust, Trust, TrustError, proxy_config, upstream_config};

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The one provider of cryptography: AES with the hardware's help, and the post-quantum key
/// exchange (X25519MLKEM768) first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    cipher::fastest_first(&mut provider.cipher_suites, cipher::aes_in_hardware());
    Arc::new(provider)
}
