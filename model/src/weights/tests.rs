//! Provides the tests of weight reading: conversions, shards, hostile files and the fingerprint.
