//! Provides the conversions to smaller numbers that this crate is allowed; all others are errors or do not compile.

/// The lowest 8 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the others are not meant")]
pub(crate) const fn low_byte(bits: u32) -> u8 {
    bits as u8
}

/// The lowest 16 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the others are not meant")]
pub(crate) const fn low_half(bits: u32) -> u16 {
    bits as u16
}

/// The lowest 32 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the others are not meant")]
pub(crate) const fn low_word(bits: u64) -> u32 {
    bits as u32
}

/// A count of what one frame or shard holds. The coder needs it for every entry, so only a debug build checks it.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "`limits` are below 2^32, and lengths are checked against them first"
)]
pub(crate) const fn narrow(count: usize) -> u32 {
    debug_assert!(count as u64 <= u32::MAX as u64);
    count as u32
}

/// A number that was rounded already, as an integer; the nearest that there is, and 0 for NaN.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
pub(crate) const fn integer(value: f64) -> i32 {
    value as i32
}

/// As [`integer`], from 0 on.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates"
)]
pub(crate) const fn natural(value: f32) -> u32 {
    value as u32
}

/// As [`integer`], from -128 to 127.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
pub(crate) const fn signed_byte(value: f32) -> i8 {
    value as i8
}

/// The nearest number in single precision.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
pub(crate) const fn single(value: f64) -> f32 {
    value as f32
}
