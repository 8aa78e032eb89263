//! LZF, the compression of strings inside an RDB: only unpacking, and only for keys.

/// The unpacked bytes, or nothing when they would not be exactly `length` bytes. Allocates `length` bytes, which the
/// caller has bounded.
pub(super) fn unpack(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(length);
    let mut at = 0;
    while at < packed.len() {
        let control = usize::from(packed[at]);
        at += 1;
        if control < 32 {
            // A run of literal bytes.
            let run = packed.get(at..at + control + 1)?;
            plain.extend_from_slice(run);
            at += run.len();
        } else {
            // A copy of bytes that came before; it may overlap what it writes.
            let mut count = control >> 5;
            if count == 7 {
                count += usize::from(*packed.get(at)?);
                at += 1;
            }
            let distance = ((control & 0x1f) << 8) + usize::from(*packed.get(at)?) + 1;
            at += 1;
            let start = plain.len().checked_sub(distance)?;
            for from in start..start + count + 2 {
                plain.push(plain[from]);
            }
        }
        if plain.len() > length {
            return None;
        }
    }
    (plain.len() == length).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_and_an_overlapping_copy_are_unpacked() {
        // "a", then nine bytes copied from one byte before.
        assert_eq!(unpack(&[0, b'a', 0xe0, 0, 0], 10).as_deref(), Some(b"aaaaaaaaaa".as_slice()));
    }

    #[test]
    fn nonsense_is_refused() {
        for packed in [&[5, 1][..], &[0xe0, 0, 0], &[0x20], &[0, b'a', 0xff]] {
            assert_eq!(unpack(packed, 10), None);
        }
        assert_eq!(unpack(&[0, b'a'], 2), None);
    }
}
