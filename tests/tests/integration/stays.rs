//! Provides who was on the device when, from what teacher and trainers log, and the check that they never were there together.

use serde_json::Value;

/// Clocks of two processes are one, but are written in microseconds here and as a floating-point number there.
const CLOCK_SECONDS: f64 = 1e-5;

/// When somebody was on the device, in seconds since 1970.
#[derive(Debug)]
pub struct Stay {
    pub who: String,
    pub from: f64,
    pub to: f64,
}

/// The teacher's stays, of its reports. It counts as there from before it loads until after it has freed.
pub fn teacher_stays(log: &str) -> Vec<Stay> {
    let events = log.lines().filter_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        (value["event"] == "device").then_some(value)
    });
    let mut stays: Vec<Stay> = Vec::new();
    let mut since = None;
    for event in events {
        let at = event["unix_seconds"].as_f64().unwrap_or_default();
        match event["state"].as_str() {
            Some("loading") => since = Some(at),
            Some("granted" | "free") => stays.extend(since.take().map(|from| Stay {
                who: "teacher".to_owned(),
                from,
                to: at,
            })),
            _ => {}
        }
    }
    // As long as nobody asks, it stays.
    stays.extend(since.map(|from| Stay {
        who: "teacher".to_owned(),
        from,
        to: f64::INFINITY,
    }));
    stays
}

/// A trainer's stays, of its log; one that was killed was there until `end`.
pub fn trainer_stays(who: &str, log: &str, end: f64) -> Vec<Stay> {
    let mut stays = Vec::new();
    let mut since = None;
    for line in log.lines() {
        let stamp = line.split_whitespace().next().unwrap_or_default();
        if line.contains("device: taken") {
            since = Some(unix_seconds(stamp));
        }
        if line.contains("device: left") {
            stays.extend(since.take().map(|from| Stay {
                who: who.to_owned(),
                from,
                to: unix_seconds(stamp),
            }));
        }
    }
    stays.extend(since.map(|from| Stay {
        who: who.to_owned(),
        from,
        to: end,
    }));
    stays
}

/// Of a log's `2026-01-31T23:59:59.123456Z`.
fn unix_seconds(stamp: &str) -> f64 {
    let numbers: Vec<f64> = stamp
        .trim_end_matches('Z')
        .split(['-', 'T', ':'])
        .filter_map(|number| number.parse().ok())
        .collect();
    let [year, month, day, hours, minutes, seconds] = numbers[..] else {
        panic!("`{stamp}` is no time");
    };
    let is_leap = |year: u32| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let year_days = |year: u32| if is_leap(year) { 366.0 } else { 365.0 };
    let february = if is_leap(year as u32) { 29.0 } else { 28.0 };
    let months = [
        31.0, february, 31.0, 30.0, 31.0, 30.0, 31.0, 31.0, 30.0, 31.0, 30.0,
    ];
    let before: f64 = (1970..year as u32).map(year_days).sum();
    let days = before + months[..month as usize - 1].iter().sum::<f64>() + day - 1.0;
    ((days * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds
}

/// That no stay begins before the one before it has ended; gives how many there are.
pub fn assert_never_two(mut stays: Vec<Stay>) -> usize {
    stays.sort_by(|a, b| a.from.total_cmp(&b.from));
    for pair in stays.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        assert!(
            before.to <= after.from + CLOCK_SECONDS,
            "{} was there until {}, {} from {}: {stays:#?}",
            before.who,
            before.to,
            after.who,
            after.from
        );
    }
    stays.len()
}

/// Seconds since 1970.
pub fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}
