//! Provides the frames of a pass that a client leaves to others: those that `StreamBlocks` sends it without their bytes.

use bytes::Bytes;

/// Which frames are left out, from one on. Of those behind the last bit, none is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    first: u64,
    /// Bit i % 8 of byte i / 8 is for frame `first + i`.
    bits: Bytes,
}

impl LeftOut {
    /// Frames that can be named; a request has a size that it may not exceed.
    pub const FRAMES_MAX: usize = 8 << 20;

    /// Reads what a client asked for behind the cursor whose next frame is `first`.
    pub fn new(first: u64, bits: Bytes) -> Self {
        Self { first, bits }
    }

    /// Of the frames from `first` on, each of which is left out or not.
    pub fn of(first: u64, frames: &[bool]) -> Self {
        let bytes = frames.chunks(8).map(|eight| {
            let bits = eight
                .iter()
                .zip(0..)
                .filter(|(is_left_out, _)| **is_left_out);
            bits.fold(0u8, |byte, (_, bit)| byte | 1 << bit)
        });
        Self::new(first, bytes.collect())
    }

    /// Whether it names no frame.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Whether this frame is left out.
    pub fn has(&self, index: u64) -> bool {
        let Some(bit) = index.checked_sub(self.first) else {
            return false;
        };
        let at = usize::try_from(bit / 8).ok();
        let byte = at.and_then(|at| self.bits.get(at));
        byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }

    /// What to ask for behind a cursor whose next frame is `next`.
    pub fn bits_from(&self, next: u64) -> Bytes {
        if next == self.first {
            return self.bits.clone();
        }
        let end = self.first.saturating_add(8 * self.bits.len() as u64);
        let frames: Vec<bool> = (next..end).map(|index| self.has(index)).collect();
        Self::of(next, &frames).bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_left_out_as_was_said_wherever_a_stream_goes_on() {
        let frames: Vec<bool> = (0..21).map(|i| i % 3 == 0 || i == 20).collect();
        let left_out = LeftOut::of(100, &frames);
        for next in 100..130 {
            let asked = LeftOut::new(next, left_out.bits_from(next));
            for index in next..140 {
                let said = frames
                    .get(index as usize - 100)
                    .copied()
                    .unwrap_or_default();
                assert_eq!(asked.has(index), said, "{index} from {next} on");
            }
        }
        assert!(!left_out.has(99) && !left_out.has(0) && !left_out.has(u64::MAX));
        assert!(LeftOut::default().is_empty() && LeftOut::of(3, &[]).is_empty());
    }
}
