//! How far ahead of a reader to fetch: a pure decision from the reads seen so far.
//!
//! One handle may carry several readers (threads that share it, or the kernel's own read-ahead overtaking itself), so a
//! few streams are told apart. A read belongs to the stream whose end it is near; a read that is near none begins a new
//! stream with no window at all, which is what a reader at random gets. A stream that goes on gets one block, and twice
//! as much each time it asks again, up to the limit. It asks again when half of its window is used up, of a large one
//! sooner: as soon as one more request of a good size fits in, so that as many are under way as the window has room for.

use std::ops::Range;

/// Streams told apart on one handle: a replica's dump is read by one, a store opened in parallel by a few.
const STREAMS: usize = 4;

/// How far a read may lie from where its stream ended: kernel requests of one megabyte, handled by several threads,
/// overtake each other by one or two.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;

/// A stretch that is worth a request of its own: larger ones would leave connections idle between them.
pub(super) const STRETCH_BYTES: u64 = 4 * 1024 * 1024;

/// What is remembered of one handle's reads.
#[derive(Debug, Clone)]
pub struct Window {
    block_bytes: u64,
    limit_bytes: u64,
    /// Most recently used last.
    streams: Vec<Stream>,
}

#[derive(Debug, Clone)]
struct Stream {
    /// Behind the furthest byte read.
    end: u64,
    /// Behind the furthest byte asked for ahead; at least `end` once anything was.
    ahead_end: u64,
    /// How far ahead is wanted; 0 until the stream has gone on once.
    window_bytes: u64,
}

impl Window {
    /// For a file of blocks of `block_bytes` (0 counts as 1); never asks for more than `limit_bytes` ahead, so 0 turns
    /// read-ahead off.
    pub fn new(block_bytes: u64, limit_bytes: u64) -> Self {
        Self { block_bytes: block_bytes.max(1), limit_bytes, streams: Vec::new() }
    }

    /// Takes note of a read and says which bytes to fetch ahead, if any: a range behind the read that was not named
    /// before for this stream. It may reach behind the end of the file.
    pub fn observe(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        if length == 0 || self.limit_bytes < self.block_bytes {
            return None;
        }
        let end = offset.saturating_add(length);
        // Slack is for requests that overtake each other inside what is already fetched ahead, or follow closely.
        let near = |stream: &Stream| {
            let slack = SLACK_BYTES.min(stream.window_bytes.max(length));
            offset <= stream.end.saturating_add(slack) && end.saturating_add(slack) >= stream.end
        };
        let Some(found) = self.streams.iter().rposition(near) else {
            if self.streams.len() == STREAMS {
                self.streams.remove(0);
            }
            self.streams.push(Stream { end, ahead_end: end, window_bytes: 0 });
            return None;
        };
        let mut stream = self.streams.remove(found);
        let goes_on = end > stream.end;
        if goes_on {
            stream.end = end;
            stream.ahead_end = stream.ahead_end.max(end);
        }
        let wanted = if goes_on { self.widen(&mut stream) } else { None };
        self.streams.push(stream);
        wanted
    }

    /// Of a range that was named last, what lies behind `covered` was not fetched after all: it is named again.
    pub fn retreat(&mut self, named: &Range<u64>, covered: u64) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.ahead_end == named.end) {
            stream.ahead_end = covered.max(named.start).max(stream.end).min(named.end);
        }
    }

    fn widen(&self, stream: &mut Stream) -> Option<Range<u64>> {
        let left = stream.ahead_end - stream.end;
        let room = stream.window_bytes.saturating_sub(left);
        if stream.window_bytes > 0 && room < STRETCH_BYTES.min(stream.window_bytes / 2) {
            return None;
        }
        stream.window_bytes = (stream.window_bytes * 2).clamp(self.block_bytes, self.limit_bytes);
        let until = stream.end.saturating_add(stream.window_bytes);
        // Up to a block's end: half a block cannot be fetched.
        let until = until - until % self.block_bytes;
        if until <= stream.ahead_end {
            return None;
        }
        let wanted = stream.ahead_end..until;
        stream.ahead_end = until;
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 1 << 20;
    const LIMIT: u64 = 16 * BLOCK;
    const REQUEST: u64 = 128 * 1024;

    #[test]
    fn a_first_read_asks_for_nothing_and_the_next_for_a_block() {
        let mut window = Window::new(BLOCK, LIMIT);
        assert_eq!(window.observe(0, BLOCK), None);
        assert_eq!(window.observe(BLOCK, BLOCK), Some(2 * BLOCK..3 * BLOCK));
    }

    #[test]
    fn a_sequential_reader_is_soon_as_far_ahead_as_allowed() {
        let mut window = Window::new(BLOCK, LIMIT);
        let furthest = (0..512).filter_map(|number| window.observe(number * REQUEST, REQUEST)).map(|range| range.end).max();
        assert!(furthest.is_some_and(|end| end >= 512 * REQUEST + LIMIT / 2), "{furthest:?}");
    }

    #[test]
    fn a_large_window_is_kept_full() {
        let mut window = Window::new(BLOCK, LIMIT);
        let mut ahead = 0;
        for number in 0..1024 {
            ahead = window.observe(number * REQUEST, REQUEST).map_or(ahead, |range| range.end);
            let left = ahead.saturating_sub((number + 1) * REQUEST);
            assert!(number < 256 || left > LIMIT - STRETCH_BYTES - BLOCK, "{left} at {number}");
        }
    }

    #[test]
    fn what_was_not_fetched_is_named_again() {
        let mut window = Window::new(BLOCK, LIMIT);
        window.observe(0, BLOCK);
        let named = window.observe(BLOCK, BLOCK).expect("one block");
        window.retreat(&named, named.start);
        assert_eq!(window.observe(2 * BLOCK, BLOCK).map(|range| range.start), Some(3 * BLOCK));
        let named = window.observe(3 * BLOCK, BLOCK).unwrap_or(4 * BLOCK..5 * BLOCK);
        window.retreat(&(0..7), 3);
        window.retreat(&named, 0);
        assert!(window.observe(4 * BLOCK, BLOCK).is_none_or(|range| range.start >= 5 * BLOCK), "never behind the reader");
    }

    #[test]
    fn a_jump_asks_for_nothing() {
        let mut window = Window::new(BLOCK, LIMIT);
        for number in 0..64 {
            window.observe(number * REQUEST, REQUEST);
        }
        assert_eq!(window.observe(1 << 40, REQUEST), None);
    }

    #[test]
    fn a_reader_at_random_never_causes_read_ahead() {
        let mut window = Window::new(64 * 1024, LIMIT);
        let asked = (0..1000u64).filter_map(|number| window.observe((number * 7_919 % 997) << 28, 4096)).count();
        assert_eq!(asked, 0);
    }

    #[test]
    fn interleaved_sequential_readers_are_all_recognised() {
        let mut window = Window::new(BLOCK, LIMIT);
        let starts = [0u64, 1 << 32, 1 << 33];
        let mut ahead = [0u64; 3];
        for number in 0..256 {
            for (start, ahead) in starts.iter().zip(&mut ahead) {
                if let Some(range) = window.observe(start + number * REQUEST, REQUEST) {
                    *ahead = range.end - start;
                }
            }
        }
        assert!(ahead.iter().all(|end| *end > 256 * REQUEST + LIMIT / 4), "{ahead:?}");
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let mut window = Window::new(BLOCK, LIMIT);
        for number in 0..64u64 {
            window.observe((number ^ 1) * BLOCK, BLOCK);
        }
        assert_eq!(window.streams.len(), 1);
    }

    #[test]
    fn a_limit_below_a_block_turns_read_ahead_off() {
        let mut window = Window::new(BLOCK, BLOCK - 1);
        assert_eq!((0..100).filter_map(|number| window.observe(number * BLOCK, BLOCK)).count(), 0);
    }

    proptest! {
        #[test]
        fn nothing_is_asked_for_twice_or_too_far(reads in prop::collection::vec((0u64..64, 1u64..9), 1..200)) {
            let mut window = Window::new(BLOCK, LIMIT);
            for (at, length) in reads {
                if let Some(range) = window.observe(at * REQUEST, length * REQUEST) {
                    prop_assert!(range.start < range.end);
                    prop_assert!(range.end <= 64 * REQUEST + 9 * REQUEST + LIMIT);
                }
            }
        }

        #[test]
        fn a_sequential_reader_is_asked_for_each_byte_at_most_once(request in 1u64..(3 * BLOCK), count in 1u64..300) {
            let mut window = Window::new(BLOCK, LIMIT);
            let mut end = 0;
            for number in 0..count {
                if let Some(range) = window.observe(number * request, request) {
                    prop_assert!(range.start >= end && range.start >= (number + 1) * request);
                    end = range.end;
                }
            }
        }
    }
}
