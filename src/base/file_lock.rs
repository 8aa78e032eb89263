//! Locks of files among processes: they end with the process that has them, however it ends.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Between two attempts: some are held for one stat and one rename.
const AGAIN: Duration = Duration::from_millis(1);
/// Who had it may just be ending; and a program that it starts has the lock too, until it has begun.
pub const MOMENT: Duration = Duration::from_secs(2);

/// Whose lock it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Nobody else's.
    Alone,
    /// Also of others who share it.
    Shared,
}

/// Takes the lock of an open file, waiting at most `patience`; false when somebody else has it for so long. Blocks the
/// thread. It is held until the last handle of this opening is closed.
pub fn lock_file(file: impl AsFd, hold: Hold, patience: Duration) -> io::Result<bool> {
    let operation = match hold {
        Hold::Alone => FlockOperation::NonBlockingLockExclusive,
        Hold::Shared => FlockOperation::NonBlockingLockShared,
    };
    let until = Instant::now() + patience;
    loop {
        match flock(file.as_fd(), operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(AGAIN),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_refused_while_another_opening_has_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let opened = || std::fs::File::open(file.path()).expect("opens");
        let lock = |file: &std::fs::File, hold, patience| lock_file(file, hold, patience).expect("a file system with locks");
        let (one, two) = (opened(), opened());
        assert!(lock(&one, Hold::Shared, Duration::ZERO) && lock(&two, Hold::Shared, Duration::ZERO));
        assert!(!lock(&two, Hold::Alone, Duration::from_millis(30)));
        // Another one waits until it is free.
        let waiting = std::thread::spawn(move || lock(&two, Hold::Alone, Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        drop(one);
        assert!(waiting.join().expect("does not panic"));
    }
}
