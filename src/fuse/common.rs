//! What the tree of snapshots and clones say to the kernel in the same way.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, InitFlags, KernelConfig, ReplyXattr};

/// How long the kernel keeps what never changes. Any long time would do; it forgets sooner when memory is short.
pub(super) const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Read-ahead requests that the kernel may have under way. The default of 16 is used up by two readers of a store that
/// answers in 30 ms.
const BACKGROUND_REQUESTS: u16 = 64;

/// Keeps a panic inside the request that it happened in: the reply is dropped, which the kernel gets as EIO.
pub(super) fn contained(call: &'static str, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!(call, "a request panicked and was answered with EIO");
    }
}

/// A time as the kernel takes it.
pub(super) fn time(since_1970_ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(since_1970_ns.unsigned_abs());
    let time = if since_1970_ns < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// `size` is the caller's room; 0 asks how much is needed.
pub(super) fn answer_extended(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        // At most 64 KiB.
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(error),
    }
}

/// Asks the kernel for what it can; what it cannot is done without.
pub(super) fn ask(config: &mut KernelConfig, wanted: &[InitFlags]) {
    for capability in wanted {
        if config.add_capabilities(*capability).is_err() {
            tracing::debug!(?capability, "the kernel does not have it");
        }
    }
    if let Err(nearest) = config.set_max_background(BACKGROUND_REQUESTS) {
        tracing::debug!(nearest, "the kernel allows another number of background requests");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_shown_as_such() {
        assert_eq!(UNIX_EPOCH.duration_since(time(-1_500_000_000)).expect("before"), Duration::from_millis(1500));
        assert_eq!(time(i64::MIN).max(UNIX_EPOCH), UNIX_EPOCH);
    }

    #[test]
    fn a_panic_stays_in_its_request() {
        contained("test", || panic!("in a request"));
    }
}
