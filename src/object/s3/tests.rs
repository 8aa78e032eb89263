//! What the client makes of servers that falter or lie: each is a script of answers on a loopback port.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>";

/// Answers one connection after the other from its script, and then no more.
struct Scripted {
    address: SocketAddr,
    answers: usize,
    requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

impl Scripted {
    /// Each answer is `status line and headers` and a body; `Content-Length` is added unless it is there.
    fn new(script: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let script: Vec<(String, String)> = script.iter().map(|(head, body)| ((*head).into(), (*body).into())).collect();
        let (answers, seen) = (script.len(), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            for (head, body) in script {
                let Ok((stream, _)) = listener.accept() else { return };
                answer(stream, &head, &body, &seen);
            }
        });
        let folder = tempfile::tempdir().expect("a temporary directory");
        let credentials = "[default]\naws_access_key_id = a\naws_secret_access_key = s\n";
        std::fs::write(folder.path().join("credentials"), credentials).expect("write");
        Self { address, answers, requests, thread: Some(thread), folder }
    }

    fn store(&self) -> S3Store {
        S3Store::new(S3Options {
            bucket: "bucket".to_owned(),
            prefix: "base".to_owned(),
            endpoint: Some(format!("http://{}", self.address)),
            credentials_file: Some(self.folder.path().join("credentials")),
            operation_timeout: Duration::from_secs(5),
            max_attempts: 3,
            ..S3Options::default()
        })
        .expect("the options are good")
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic holds it").clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        // Whatever was not asked for is asked for now, so that the thread ends.
        for _ in self.requests().len()..self.answers {
            let _ = TcpStream::connect(self.address);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads one request whole, notes it (before the client can go on), and answers it.
fn answer(mut stream: TcpStream, head: &str, body: &str, seen: &Mutex<Vec<String>>) {
    let note = |request: String| seen.lock().expect("no panic holds it").push(request);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut bytes = Vec::new();
    let mut part = [0u8; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                break;
            }
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return note(String::new()),
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
    let length = if head.contains("Content-Length") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    note(String::from_utf8_lossy(&bytes).to_lowercase());
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\n{length}Connection: close\r\n\r\n{body}").as_bytes());
}

fn page(keys: &[&str], is_truncated: bool) -> String {
    let contents: String = keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
    format!("<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{contents}</ListBucketResult>")
}

#[tokio::test]
async fn a_store_that_asks_to_slow_down_is_tried_again() {
    let server = Scripted::new(&[("503 Slow", SLOW_DOWN), ("500 Oops", ""), ("200 OK", "body")]);
    assert_eq!(server.store().get("key", None).await.expect("the third try"), Bytes::from_static(b"body"));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn tries_are_bounded() {
    let server = Scripted::new(&[("503 Slow", SLOW_DOWN); 3]);
    let error = server.store().get("key", None).await.expect_err("never anything else");
    assert!(matches!(&error, ObjectError::Unavailable { reason, .. } if reason.contains("SlowDown")), "{error:?}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_fetched_again_and_never_delivered_short() {
    let broken = ("206 Partial\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/9", "bo");
    let whole = ("206 Partial\r\nContent-Range: bytes 2-5/9", "body");
    let server = Scripted::new(&[broken, whole]);
    assert_eq!(server.store().get("key", Some(2..6)).await.expect("the second try"), Bytes::from_static(b"body"));
    let server = Scripted::new(&[broken; 3]);
    let error = server.store().get("key", Some(2..6)).await.expect_err("always short");
    assert!(matches!(error, ObjectError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_recognised_as_ours() {
    let head = "200 OK\r\nETag: \"v\"\r\nContent-Length: 4";
    let mine = [("500 Oops", ""), ("412 Taken", ""), (head, ""), ("200 OK", "body")];
    let receipt = Scripted::new(&mine).store().put("key", Bytes::from_static(b"body"), PutMode::Create).await;
    assert_eq!(receipt.expect("it landed").version, ObjectVersion("\"v\"".to_owned()));
    let theirs = [("500 Oops", ""), ("412 Taken", ""), (head, ""), ("200 OK", "else")];
    let answer = Scripted::new(&theirs).store().put("key", Bytes::from_static(b"body"), PutMode::Create).await;
    assert!(matches!(answer, Err(ObjectError::Conflict { .. })), "{answer:?}");
    let at_once = [("412 Taken", "")];
    let answer = Scripted::new(&at_once).store().put("key", Bytes::from_static(b"body"), PutMode::Create).await;
    assert!(matches!(answer, Err(ObjectError::Conflict { .. })), "{answer:?}");
}

#[tokio::test]
async fn every_put_carries_our_checksum() {
    let server = Scripted::new(&[("200 OK\r\nETag: \"v\"", "")]);
    server.store().put("key", Bytes::from_static(b"body"), PutMode::Create).await.expect("put");
    let request = server.requests().remove(0);
    let checksum = format!("x-amz-checksum-sha256: {}", sha256(b"body").to_lowercase());
    assert!(request.contains(&checksum) && request.contains("if-none-match: *"), "{request}");
}

#[tokio::test]
async fn a_listing_that_lies_is_refused() {
    for (why, body) in [
        ("another prefix", page(&["base/a/1", "elsewhere/2"], false)),
        ("repeated", page(&["base/a/1", "base/a/1"], false)),
        ("out of order", page(&["base/a/2", "base/a/1"], false)),
        ("before the start", page(&["base/a/0"], false)),
        ("never ends", page(&[], true)),
    ] {
        let server = Scripted::new(&[("200 OK", &body)]);
        let answer = server.store().list("a/", Some("a/0"), 10).await;
        assert!(matches!(answer, Err(ObjectError::Invalid { .. })), "{why}: {answer:?}");
    }
}

#[tokio::test]
async fn a_profile_that_is_not_there_is_denied_without_asking_anybody() {
    let server = Scripted::new(&[]);
    let options = S3Options { profile: Some("absent".to_owned()), ..server.store().options };
    let error = S3Store::new(options).expect("good options").get("key", None).await.expect_err("no credentials");
    assert!(matches!(error, ObjectError::Denied { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_unavailable_within_the_limits() {
    let server = Scripted::new(&[]);
    // The system takes the connection; nobody reads it.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let short = Duration::from_millis(200);
    for (read_timeout, operation_timeout) in [(short, Duration::from_secs(60)), (Duration::from_secs(60), short)] {
        let endpoint = Some(endpoint.clone());
        let options = S3Options { endpoint, read_timeout, operation_timeout, max_attempts: 2, ..server.store().options };
        let begin = std::time::Instant::now();
        let error = S3Store::new(options).expect("good options").get("key", None).await.expect_err("no answer");
        assert!(error.is_transient(), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn a_page_of_foreign_objects_alone_is_not_the_end() {
    let (first, second) = (page(&["base/a/"], true), page(&["base/a/1"], false));
    let server = Scripted::new(&[("200 OK", &first), ("200 OK", &second)]);
    let found = server.store().list("a/", None, 10).await.expect("list");
    assert_eq!(found.objects.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a/1"]);
}

#[test]
fn content_ranges_are_read_as_half_open() {
    assert_eq!(parsed_range("bytes 5-9/100"), Some((5, 10)));
    assert_eq!(parsed_range("bytes 0-0/*"), Some((0, 1)));
    for bad in ["", "bytes */100", "bytes 5-/100", "items 5-9/100", "bytes 0-18446744073709551615/1"] {
        assert_eq!(parsed_range(bad), None, "{bad}");
    }
}

#[test]
fn a_range_that_was_not_asked_for_is_refused() {
    let answer = |text: Option<&str>, length: i64| {
        let answer = GetObjectOutput::builder().set_content_range(text.map(str::to_owned)).content_length(length);
        delivered_bytes("key", Some(&(5..10)), &answer.build())
    };
    assert_eq!(answer(Some("bytes 5-9/100"), 5).ok(), Some(5));
    assert_eq!(answer(None, 5).ok(), Some(5), "called the whole, but of the range's length");
    assert!(matches!(answer(Some("bytes 5-8/9"), 4), Err(ObjectError::ShortRange { .. })));
    assert!(matches!(answer(Some("bytes 4-8/100"), 5), Err(ObjectError::Invalid { .. })));
    assert!(matches!(answer(None, 100), Err(ObjectError::Invalid { .. })));
}
