//! How many files the process may have open, and how many a configuration needs.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::text::{size, thousands};

/// Sockets, the state file, snapshots on their way, who reads the metrics, and the process's own.
const BESIDE_THE_LOG: u64 = 256;

/// Raises the soft limit to the hard one, and answers what holds from now on; `None` for no limit.
///
/// The soft limit of 1,024 is for programs that wait with `select`, which knows no higher descriptor.
pub fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        // What held before holds.
        Err(_) => before,
    }
}

/// What is wrong with a log of this size in segments of this size, where so many files may be open.
///
/// Each segment stays open. What is written between two purges comes on top: as much again.
pub fn check_log(kept: u64, segment: u64, limit: Option<u64>) -> Result<(), String> {
    let Some(limit) = limit else { return Ok(()) };
    let needed = |segment: u64| {
        let segments = kept.div_ceil(segment.max(1));
        segments.saturating_mul(2).saturating_add(BESIDE_THE_LOG)
    };
    if needed(segment) <= limit {
        return Ok(());
    }
    let fits = limit.saturating_sub(BESIDE_THE_LOG) / 2;
    let advice = match fits {
        0 => "raise the limit".to_owned(),
        fits => format!(
            "use segments of {} at least, or raise the limit",
            size(up(kept.div_ceil(fits)))
        ),
    };
    Err(format!(
        "{} make {} files of log_bytes_kept ({}), which stay open; with as many for what is written meanwhile and {} \
         others it takes {}, and this process may open {} (ulimit -Hn, LimitNOFILE=): {advice}",
        size(segment),
        thousands(kept.div_ceil(segment.max(1))),
        size(kept),
        BESIDE_THE_LOG,
        thousands(needed(segment)),
        thousands(limit),
    ))
}

/// To whole KiB, as sizes are written.
fn up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 10) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_fits_when_twice_its_segments_and_the_rest_may_be_open() {
        assert_eq!(check_log(1 << 30, 64 << 20, Some(1_024)), Ok(()), "the defaults");
        assert_eq!(check_log(1 << 30, 65_536, None), Ok(()));
        assert_eq!(check_log(65_536 * 384, 65_536, Some(1_024)), Ok(()));
        let refused = check_log(65_536 * 385, 65_536, Some(1_024)).unwrap_err();
        assert!(
            refused.contains("it takes 1,026, and this process may open 1,024"),
            "{refused}"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let refused = check_log(1 << 30, 65_536, Some(4_096)).unwrap_err();
        assert!(
            refused.starts_with("64 KiB make 16,384 files of log_bytes_kept (1 GiB)"),
            "{refused}"
        );
        assert!(
            refused.contains("it takes 33,024, and this process may open 4,096"),
            "{refused}"
        );
        assert!(refused.contains("use segments of 547 KiB at least"), "{refused}");
        assert_eq!(check_log(1 << 30, 547 << 10, Some(4_096)), Ok(()));
        assert!(check_log(1 << 30, 546 << 10, Some(4_096)).is_err());
        assert!(
            check_log(1 << 30, 64 << 20, Some(100))
                .unwrap_err()
                .ends_with(": raise the limit")
        );
    }
}
