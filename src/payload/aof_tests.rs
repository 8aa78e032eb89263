//! Append-only files, cut anywhere and damaged anywhere.

use proptest::prelude::*;

use super::*;

const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\n*1\r\nx\r\n";
const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

fn scan(bytes: &[u8]) -> (u64, Result<(), AofError>) {
    let mut scanner = AofScanner::new(0);
    let outcome = scanner.feed(bytes);
    (scanner.safe_length(), outcome)
}

#[test]
fn a_file_is_cut_at_the_end_of_a_command() {
    let two = [SET, SET].concat();
    for length in 0..two.len() {
        let whole = if length < SET.len() { 0 } else { SET.len() };
        assert_eq!(scan(&two[..length]), (whole as u64, Ok(())), "{length}");
    }
}

#[test]
fn a_transaction_is_never_cut() {
    let file = [SET, MULTI, SET, EXEC, SET].concat();
    let (before, after) = (SET.len(), file.len() - SET.len());
    for length in before..file.len() {
        let safe = if length < after { before } else { after };
        assert_eq!(scan(&file[..length]).0, safe as u64, "{length}");
    }
}

#[test]
fn a_preamble_is_handed_to_the_rdb_checker() {
    let mut preamble = b"REDIS0010\xfe\x00\x00\x01k\x01v\xff".to_vec();
    let crc = super::super::checksum::crc64(0, &preamble);
    preamble.extend_from_slice(&crc.to_le_bytes());
    let file = [&preamble[..], b"#TS:1234\r\n", SET].concat();
    assert_eq!(scan(&file), (file.len() as u64, Ok(())));
    assert_eq!(scan(&file[..preamble.len() - 1]).0, 0);
    preamble[13] ^= 1;
    assert!(matches!(scan(&preamble).1, Err(AofError::Preamble(_))));
}

#[test]
fn what_is_no_command_is_an_error_at_its_place() {
    let spoilt = [SET, b"SET k v\r\n"].concat();
    let (safe, outcome) = scan(&spoilt);
    assert_eq!(safe, SET.len() as u64);
    assert!(matches!(outcome, Err(AofError::Corrupt { offset, .. }) if offset == SET.len() as u64));
    for bytes in [&b"*x\r\n"[..], b"*1\r\n:3\r\n", b"*1\n$1\r\n", b"*1\r\n$2\r\nabc\r\n", b"*1111111111111111111111111", b"\n"] {
        assert!(scan(bytes).1.is_err(), "{bytes:?}");
    }
}

#[test]
fn a_manifest_is_read_leniently_and_its_names_strictly() {
    let text = b"file \"a \\x62.rdb\" seq 2 type b startoffset 7\nfile a.2.incr.aof seq 2 type i\n# note\n";
    let files = parse_manifest(text).expect("good");
    assert_eq!(files[0], AofFile { name: b"a b.rdb".to_vec(), sequence: 2, kind: AofFileKind::Base });
    assert_eq!(files[1].kind, AofFileKind::Increment);
    assert_eq!(parse_manifest(&write_manifest(&files)), Ok(files));
    for bad in [
        "file ../x seq 1 type b",
        "file a/b seq 1 type i",
        "file .. seq 1 type i",
        "file a seq x type i",
        "file a seq 1 type z",
        "file a seq 1",
        "file a seq 1 type",
        "file \"a seq 1 type b",
        "file a seq 1 type b\nfile c seq 1 type b",
        "file a seq 1 type i\nfile a seq 2 type i",
    ] {
        assert!(parse_manifest(bad.as_bytes()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn the_pieces_do_not_matter(cuts in proptest::collection::vec(0usize..200, 0..10), end in 0usize..200) {
        let file = [SET, b"#TS:1\r\n", MULTI, SET, SET, EXEC, SET].concat();
        let file = &file[..end.min(file.len())];
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(file.len())).collect();
        cuts.extend([0, file.len()]);
        cuts.sort_unstable();
        let mut scanner = AofScanner::new(0);
        for pair in cuts.windows(2) {
            scanner.feed(&file[pair[0]..pair[1]]).expect("sound");
        }
        prop_assert_eq!(scanner.safe_length(), scan(file).0);
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = scan(&[b"*2\r\n$1\r\na\r\n$".as_slice(), &bytes].concat());
        let _ = parse_manifest(&bytes);
    }
}
