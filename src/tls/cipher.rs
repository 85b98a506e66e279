//! Order of the cipher suites: a client's preference decides, and ours is by speed.

use rustls::{CipherSuite, SupportedCipherSuite};

/// Sort TLS 1.3's suites by their speed on this processor. All of them are strong enough (RFC 8446
/// §9.1 makes AES-128 mandatory); with AES instructions its ten rounds beat the fourteen of
/// AES-256, and without them ChaCha20 beats both (RFC 8439, appendix B).
pub(crate) fn fastest_first(suites: &mut [SupportedCipherSuite], aes_in_hardware: bool) {
    suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 if !aes_in_hardware => 0,
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 1,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 2,
        _ => 3,
    });
}

/// Report whether the processor has AES instructions; a Raspberry Pi 4, for one, has none.
pub(crate) fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs;

    #[test]
    fn the_fastest_cipher_of_the_processor_is_asked_for_first() {
        let mut suites = aws_lc_rs::default_provider().cipher_suites;
        let all = suites.len();
        fastest_first(&mut suites, true);
        assert_eq!(suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        fastest_first(&mut suites, false);
        let chacha = CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
        assert_eq!(suites[0].suite(), chacha);
        assert_eq!(suites.len(), all, "the others are still offered");
    }
}
