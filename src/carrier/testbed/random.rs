//! Seeded randomness, and byte patterns that identify their place.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Return a number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }

    /// Return a length, small ones as often as large ones.
    pub(crate) fn size(&mut self) -> usize {
        let limit = 1 << (4 + self.below(15));
        self.below(limit) as usize
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        ((self.next_u64() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }
}

/// Return `len` bytes of stream `stream`: no two streams, and no two places in one, look alike.
pub(crate) fn pattern(stream: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(stream);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8))
        .flat_map(|_| random.next_u64().to_le_bytes())
        .collect();
    bytes.truncate(len);
    bytes
}
