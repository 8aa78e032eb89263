//! Tests of the RDB checker, on dumps built byte by byte.

use proptest::prelude::*;

use super::*;

fn text(bytes: &[u8]) -> Vec<u8> {
    let mut written = vec![u8::try_from(bytes.len()).expect("short")];
    assert!(bytes.len() < 64);
    written.extend_from_slice(bytes);
    written
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    body.push(0xff);
    let crc = crc64(0, &body);
    body.extend_from_slice(&crc.to_le_bytes());
    body
}

fn aux(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0xfa], text(name), text(value)].concat()
}

/// One value of every type.
fn sample() -> Vec<u8> {
    let mut dump = b"REDIS0012".to_vec();
    dump.extend(aux(b"redis-ver", b"7.0.15"));
    dump.extend([0xfa, 5]);
    dump.extend(b"ctime");
    dump.extend([0xc2, 0x10, 0x27, 0, 0]);
    dump.extend(aux(b"repl-offset", b"42"));
    dump.extend([0xfe, 0, 0xfb, 0x40, 200, 1, 0xf4, 1, 2, 3]);
    dump.extend([vec![0xf5], text(b"#!lua name=x")].concat());
    // A module's own part: id, when, opcodes.
    dump.extend([0xf7, 0x81, 0, 0, 0, 0, 0, 0, 0, 9, 2, 1, 5, 2, b'h', b'i', 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut value = |kind: u8, key: &[u8], bytes: &[u8]| dump.extend([vec![kind], text(key), bytes.to_vec()].concat());
    value(0, b"string", &text(b"value"));
    value(0, b"packed", &[0xc3, 5, 10, 0, b'a', 0xe0, 0, 0]);
    value(1, b"list", &[2, 1, b'a', 1, b'b']);
    value(3, b"zset-old", &[2, 1, b'a', 3, b'1', b'.', b'5', 1, b'b', 254]);
    value(4, b"hash", &[1, 1, b'f', 1, b'v']);
    value(5, b"zset", &[1, 1, b'm', 0, 0, 0, 0, 0, 0, 0, 0]);
    value(7, b"module", &[0x81, 0, 0, 0, 0, 0, 0, 0, 9, 1, 7, 2, 8, 0]);
    value(18, b"quick", &[1, 2, 1, b'x']);
    let pending = [vec![1], vec![7; 16], vec![8; 8], vec![1]].concat();
    let consumers = [vec![1, 1, b'c'], vec![9; 8], vec![1], vec![7; 16]].concat();
    let active = [vec![1, 1, b'c'], vec![9; 16], vec![1], vec![7; 16]].concat();
    let nodes = [vec![1, 16], vec![1; 16], vec![2, b'l', b'p'], vec![1, 2, 3]].concat();
    value(15, b"stream1", &[&nodes[..], &[1, 1, b'g', 5, 6], &pending, &consumers].concat());
    value(19, b"stream2", &[&nodes[..], &[1, 2, 3, 4, 5], &[1, 1, b'g', 5, 6, 7], &pending, &consumers].concat());
    value(21, b"stream3", &[&nodes[..], &[1, 2, 3, 4, 5], &[1, 1, b'g', 5, 6, 7], &pending, &active].concat());
    value(22, b"h22", &[1, 0, 1, b'f', 1, b'v']);
    value(23, b"h23", &text(b"lp"));
    value(24, b"h24", &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'f', 1, b'v']);
    value(25, b"h25", &[1, 0, 0, 0, 0, 0, 0, 0, 2, b'l', b'p']);
    for kind in [9, 10, 11, 12, 13, 16, 17, 20] {
        value(kind, b"blob", &text(b"blob"));
    }
    value(2, b"empty", &[0]);
    value(14, b"old-quick", &[1, 2, b'z', b'l']);
    dump.extend([0xfd, 1, 0, 0, 0, 0xf9, 3, 0, 1, b'a', 1, b'1']);
    dump.extend([0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xf8, 0x40, 100, 0, 0xc0, 5, 1, b'1']);
    sealed(dump)
}

fn check(bytes: &[u8]) -> Result<RdbFacts, RdbError> {
    let mut checker = RdbChecker::new(5000);
    checker.feed(bytes)?;
    checker.finish()
}

#[test]
fn every_type_is_walked_and_the_keys_are_counted() {
    let facts = check(&sample()).expect("sound");
    assert_eq!((facts.keys, facts.expired, facts.volatile), (27, 1, 2));
    assert_eq!((facts.version, facts.created_s, facts.replication_offset), (12, Some(10_000), Some(42)));
    assert_eq!(facts.store_version.as_deref(), Some("7.0.15"));
    assert!(facts.checksummed);
    assert_eq!(facts.length_bytes, sample().len() as u64);
}

#[test]
fn a_dump_cut_short_at_any_byte_is_noticed() {
    let dump = sample();
    for length in 0..dump.len() {
        assert!(matches!(check(&dump[..length]), Err(RdbError::Truncated { .. })), "cut to {length}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let dump = sample();
    for at in 0..dump.len() * 8 {
        let mut flipped = dump.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(check(&flipped).is_err(), "bit {at}");
    }
}

#[test]
fn bytes_after_the_end_are_noticed() {
    let dump = [sample(), vec![0]].concat();
    assert!(matches!(check(&dump), Err(RdbError::Corrupt { .. })));
    let mut checker = RdbChecker::new(0);
    assert_eq!(checker.feed_prefix(&dump), Ok(dump.len() - 1));
    assert!(checker.is_complete());
}

#[test]
fn a_zero_checksum_is_not_checked() {
    let mut dump = sample();
    let end = dump.len();
    dump[end - 8..].fill(0);
    assert!(!check(&dump).expect("sound").checksummed);
}

#[test]
fn an_unknown_type_is_not_called_corrupt() {
    for kind in [6, 8, 26, 100, 0xf0, 0xf6] {
        let dump = sealed([b"REDIS0012".to_vec(), vec![kind]].concat());
        assert!(matches!(check(&dump), Err(RdbError::Unknown { .. })), "{kind}");
    }
}

#[test]
fn valkey_writes_field_expiries_in_its_own_way() {
    let mut body = b"VALKEY080".to_vec();
    body.extend([22, 1, b'h', 1, 1, b'f', 1, b'v', 255, 255, 255, 255, 255, 255, 255, 255]);
    let facts = check(&sealed(body)).expect("sound");
    assert_eq!((facts.magic.as_str(), facts.version, facts.keys), ("VALKEY", 80, 1));
}

#[test]
fn absurd_lengths_cost_nothing_and_end_as_truncated() {
    let huge = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let start = [b"REDIS0012".to_vec(), vec![0, 1, b'k']].concat();
    let packed = [&start[..], &[0xc3], &huge, &huge, &[1; 100]].concat();
    for dump in [
        [&start[..], &huge, &[7; 100]].concat(),
        [b"REDIS0012".as_slice(), &[1, 1, b'k'], &huge, &[0; 100]].concat(),
        [b"REDIS0012".as_slice(), &[0xfa], &huge, &[0; 100]].concat(),
        [b"REDIS0012".as_slice(), &[0], &huge, &[0; 100]].concat(),
        packed,
    ] {
        let mut checker = RdbChecker::new(0).with_slots(vec![(0, 16383)]);
        checker.feed(&dump).expect("so far so good");
        assert!(matches!(checker.finish(), Err(RdbError::Truncated { .. })));
    }
}

#[test]
fn a_key_outside_the_slots_is_counted() {
    let body = |key: &[u8]| sealed([b"REDIS0011".to_vec(), vec![0], key.to_vec(), vec![1, b'v']].concat());
    // "foo" lies in slot 12182; the integer 5 is the text "5", slot 9889; ten times "a" is compressed.
    for (key, slot) in [
        (text(b"{foo}x"), 12182),
        (vec![0xc0, 5], hash_slot(b"5")),
        (vec![0xc3, 5, 10, 0, b'a', 0xe0, 0, 0], hash_slot(b"aaaaaaaaaa")),
    ] {
        for (slots, misplaced) in [(vec![(slot, slot)], 0), (vec![(0, slot - 1), (slot + 1, 16383)], 1)] {
            let mut checker = RdbChecker::new(0).with_slots(slots);
            checker.feed(&body(&key)).expect("sound");
            assert_eq!(checker.finish().expect("sound").misplaced, misplaced);
        }
    }
}

proptest! {
    #[test]
    fn the_pieces_do_not_matter(cuts in proptest::collection::vec(0usize..600, 0..20)) {
        let dump = sample();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(dump.len())).collect();
        cuts.extend([0, dump.len()]);
        cuts.sort_unstable();
        let mut checker = RdbChecker::new(5000).with_slots(vec![(0, 16383)]);
        for pair in cuts.windows(2) {
            checker.feed(&dump[pair[0]..pair[1]]).expect("sound");
        }
        prop_assert_eq!(checker.finish(), check(&dump));
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dump = [b"REDIS0011".to_vec(), bytes].concat();
        let mut checker = RdbChecker::new(0).with_slots(vec![(0, 5)]);
        let _ = checker.feed(&dump);
        let _ = checker.finish();
    }
}

#[test]
fn byte_by_byte_is_the_same_as_at_once() {
    let dump = sample();
    let mut checker = RdbChecker::new(5000);
    for byte in &dump {
        checker.feed(std::slice::from_ref(byte)).expect("sound");
    }
    assert_eq!(checker.finish(), check(&dump));
}
