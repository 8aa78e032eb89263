//! Makes a near HTTP server behave like a distant object store: a relay that holds requests back and paces answers.
//!
//! ```text
//! relay TARGET_PORT FIRST_BYTE_MS MEGABYTES_PER_SECOND
//! ```
//!
//! It listens on a free loopback port and prints the number. Each line on its standard input is answered by the counts so
//! far as one line of JSON; the end of its standard input ends it, so that it never outlives who started it.
//!
//! How it works: a request passes `FIRST_BYTE_MS` after it came, an answer no faster than the given rate on its connection
//! (0: as fast as it goes). Bytes go from socket to socket through a pipe in the kernel (`splice`) and are never copied
//! here, since the relay shares the machine with what is measured. A thread per direction: connections are dozens.
//!
//! **Not here**: HTTP. The first bytes from the client after bytes from the server are a new request, which holds for
//! connections that are kept alive and not for pipelining. The time that a connection takes to be made is not simulated.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

/// Taken from a socket at once: some 6 ms at 90 MB/s. Half of it costs a third more processor time.
const PIECE_BYTES: usize = 512 * 1024;
/// How much of a delay of the relay itself (a busy machine) the pace makes up for: what a window of TCP would hold.
const CATCH_UP: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    open: AtomicU64,
    most_open: AtomicU64,
    requests: AtomicU64,
    answered_bytes: AtomicU64,
}

impl Counts {
    fn line(&self) -> String {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{{\"connections\": {}, \"most_open\": {}, \"requests\": {}, \"answered_bytes\": {}}}",
            read(&self.connections),
            read(&self.most_open),
            read(&self.requests),
            read(&self.answered_bytes)
        )
    }
}

#[derive(Debug, Clone, Copy)]
struct Distance {
    first_byte: Duration,
    bytes_per_second: u64,
}

/// One client with its connection to the server.
#[derive(Debug)]
struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// Whether bytes of an answer came since the last request began.
    is_answered: AtomicBool,
}

/// A pipe between two sockets.
#[derive(Debug)]
struct Passage {
    reader: io::PipeReader,
    writer: io::PipeWriter,
}

impl Passage {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // Where the system's limit is lower, the pieces are smaller.
        // SAFETY: it sets the size of a pipe that is ours, and takes no pointer.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIECE_BYTES as libc::c_int) };
        Ok(Self { reader, writer })
    }

    /// Waits for bytes and takes them; 0 at the end.
    fn take(&self, from: &TcpStream) -> usize {
        splice(from.as_raw_fd(), self.writer.as_raw_fd(), PIECE_BYTES)
    }

    /// Passes on what was taken; whether all of it went.
    fn give(&self, to: &TcpStream, mut left: usize) -> bool {
        while left > 0 {
            match splice(self.reader.as_raw_fd(), to.as_raw_fd(), left) {
                0 => return false,
                moved => left -= moved,
            }
        }
        true
    }
}

/// Bytes moved; an error is an end.
fn splice(from: RawFd, to: RawFd, limit: usize) -> usize {
    loop {
        // SAFETY: both descriptors are open as long as the call lasts; no offsets are given.
        let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), limit, libc::SPLICE_F_MOVE) };
        match usize::try_from(moved) {
            Ok(moved) => return moved,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return 0,
        }
    }
}

fn pass_requests(pair: &Pair, distance: Distance, counts: &Counts) -> io::Result<()> {
    let passage = Passage::new()?;
    let mut first = [0];
    while pair.client.peek(&mut first)? == 1 {
        // The rest of a request follows it without another wait.
        if pair.is_answered.swap(false, Ordering::Relaxed) {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            thread::sleep(distance.first_byte);
        }
        let taken = passage.take(&pair.client);
        if taken == 0 || !passage.give(&pair.server, taken) {
            break;
        }
    }
    Ok(())
}

fn pass_answers(pair: &Pair, distance: Distance, counts: &Counts) -> io::Result<()> {
    let passage = Passage::new()?;
    let mut due = Instant::now();
    loop {
        let taken = passage.take(&pair.server);
        if taken == 0 {
            return Ok(());
        }
        if !pair.is_answered.swap(true, Ordering::Relaxed) {
            due = Instant::now();
        }
        counts.answered_bytes.fetch_add(taken as u64, Ordering::Relaxed);
        if distance.bytes_per_second > 0 {
            let now = Instant::now();
            due = due.max(now.checked_sub(CATCH_UP).unwrap_or(now));
            due += Duration::from_secs_f64(taken as f64 / distance.bytes_per_second as f64);
            thread::sleep(due.saturating_duration_since(now));
        }
        if !passage.give(&pair.client, taken) {
            return Ok(());
        }
    }
}

fn serve(client: TcpStream, target_port: u16, distance: Distance, counts: &Arc<Counts>) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target_port))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    counts.connections.fetch_add(1, Ordering::Relaxed);
    counts.most_open.fetch_max(counts.open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    let pair = Arc::new(Pair { client, server, is_answered: AtomicBool::new(true) });
    let left = Arc::new(Mutex::new(2));
    for is_request in [true, false] {
        let (pair, counts, left) = (pair.clone(), counts.clone(), left.clone());
        thread::spawn(move || {
            // Either side may go at any moment: that is no failure of ours.
            let _ended =
                if is_request { pass_requests(&pair, distance, &counts) } else { pass_answers(&pair, distance, &counts) };
            let _gone = pair.client.shutdown(Shutdown::Both);
            let _gone = pair.server.shutdown(Shutdown::Both);
            let mut left = left.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *left -= 1;
            if *left == 0 {
                counts.open.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
    Ok(())
}

fn parsed() -> Option<(u16, Distance)> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target_port, first_byte_ms, megabytes] = arguments.as_slice() else { return None };
    let first_byte = Duration::from_millis(first_byte_ms.parse().ok()?);
    Some((target_port.parse().ok()?, Distance { first_byte, bytes_per_second: megabytes.parse::<u64>().ok()? * 1_000_000 }))
}

fn main() -> io::Result<()> {
    let Some((target_port, distance)) = parsed() else {
        return Err(io::Error::other("usage: relay TARGET_PORT FIRST_BYTE_MS MEGABYTES_PER_SECOND"));
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let counts = Arc::new(Counts::default());
    writeln!(io::stdout(), "{}", listener.local_addr()?.port())?;
    let accepting = counts.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A server that is gone shows as a connection that is closed.
            let _refused = serve(client, target_port, distance, &accepting);
        }
    });
    let mut asked = io::BufReader::new(io::stdin().lock());
    let mut line = Vec::new();
    while asked.by_ref().read_until(b'\n', &mut line)? > 0 {
        writeln!(io::stdout(), "{}", counts.line())?;
        line.clear();
    }
    Ok(())
}
