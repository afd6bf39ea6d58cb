//! Numbers that look random and follow from a seed: SplitMix64.

/// A sequence.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The sequence of that number under a seed.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        Self(mix(seed ^ mix(number)))
    }

    /// The next one, at least 0 and below 1.
    pub(super) fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // The upper 53 bits, which a double holds exactly.
        #[allow(clippy::cast_precision_loss)]
        let bits = (mix(self.0) >> 11) as f64;
        bits / (1_u64 << 53) as f64
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
