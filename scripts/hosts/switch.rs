//! A network switch between hosts that are far from each other: every frame arrives later, whatever connection it is of.
//!
//! ```text
//! switch PROCESS...
//! ```
//!
//! Each number is a process in a network namespace of its own, which gets a device `eth0` there; ports are counted from 0 in
//! that order. It prints `ready` when all devices are there, and answers each line on its standard input with `ok`:
//!
//! ```text
//! distance PORT MICROSECONDS     how far the host is away: a frame takes the distances of both its ends, one way
//! rate PORT BYTES_PER_SECOND     what passes to the host and from it in a second, each; 0: as much as goes
//! link PORT UP                   0: its cable is pulled, and frames to it and from it are lost; 1: it is back
//! ```
//!
//! The end of its standard input ends it, and its devices with it.
//!
//! How it works: a TAP device is an Ethernet port whose other end is this process. A thread per port reads frames and puts
//! them into the queues of the ports that they go to, each with the time when it is due; another thread per port writes them.
//! Frames keep the kernel's own header (`IFF_VNET_HDR`), so that segments of 64 KiB pass in one piece, as between virtual
//! machines of one host: a switch that shares two cores with the hosts must not be what they wait for.
//!
//! **Not here**: loss (but for a queue that overflows), and frames that overtake each other.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// `struct virtio_net_hdr`, before each frame.
const HEADER_BYTES: usize = 10;
/// Header, Ethernet and the longest segment.
const FRAME_BYTES_MAX: usize = HEADER_BYTES + 18 + 65536;
/// What waits for one port at most, as in a router: 40 ms at 200 MB/s.
const QUEUE_BYTES_MAX: usize = 8 << 20;

// From linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
/// Unfinished checksums, and long segments of TCP over IPv4 and IPv6.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;

type Address = [u8; 6];

/// A frame on its way to a port.
struct Frame {
    due: Instant,
    bytes: Arc<[u8]>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
}

/// One host's end of its cable.
struct Port {
    device: File,
    distance_us: AtomicU64,
    bytes_per_second: AtomicU64,
    is_cut: AtomicBool,
    queue: Mutex<Queue>,
    has_frames: Condvar,
}

impl Port {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn distance(&self) -> Duration {
        Duration::from_micros(self.distance_us.load(Ordering::Relaxed))
    }

    /// Sleeps for as long as so many bytes take, where there is a rate; `free_at` is when those before have passed.
    fn pace(&self, free_at: &mut Instant, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let now = Instant::now();
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        // Sleeps shorter than this are longer than they should be.
        if *free_at > now + Duration::from_millis(1) {
            thread::sleep(*free_at - now);
        }
    }

    fn enqueue(&self, frame: Frame) {
        let mut queue = self.queue();
        if queue.bytes + frame.bytes.len() > QUEUE_BYTES_MAX {
            return; // TCP sends it again
        }
        queue.bytes += frame.bytes.len();
        // A distance that became shorter lets nobody overtake.
        let due = queue.frames.back().map_or(frame.due, |last| last.due.max(frame.due));
        queue.frames.push_back(Frame { due, ..frame });
        drop(queue);
        self.has_frames.notify_one();
    }

    fn dequeue(&self) -> Frame {
        let mut queue = self.queue();
        loop {
            if let Some(frame) = queue.frames.pop_front() {
                queue.bytes -= frame.bytes.len();
                return frame;
            }
            queue = self.has_frames.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Switch {
    ports: Vec<Port>,
    /// At which port a host was seen.
    hosts: Mutex<HashMap<Address, usize>>,
}

impl Switch {
    /// Takes what the host at a port sends, for ever.
    fn receive(&self, number: usize) {
        let port = &self.ports[number];
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let mut free_at = Instant::now();
        loop {
            let length = match (&port.device).read(&mut buffer) {
                Ok(length) if length >= HEADER_BYTES + 14 => length,
                Ok(_) => continue,
                // The device is down until its host takes it up.
                Err(_) => {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            if port.is_cut.load(Ordering::Relaxed) {
                continue;
            }
            let bytes: Arc<[u8]> = Arc::from(&buffer[..length]);
            port.pace(&mut free_at, length);
            let address = |at: usize| -> Address { std::array::from_fn(|index| bytes[HEADER_BYTES + at + index]) };
            let (target, source) = (address(0), address(6));
            let known = {
                let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
                hosts.insert(source, number);
                hosts.get(&target).copied()
            };
            let now = Instant::now();
            for (other, to) in self.ports.iter().enumerate() {
                // To all where the host was not seen yet, and where all are meant.
                if other != number && known.is_none_or(|known| known == other) {
                    to.enqueue(Frame { due: now + port.distance() + to.distance(), bytes: bytes.clone() });
                }
            }
        }
    }

    /// Hands a host what is due, for ever.
    fn deliver(&self, number: usize) {
        let port = &self.ports[number];
        let mut free_at = Instant::now();
        loop {
            let frame = port.dequeue();
            thread::sleep(frame.due.saturating_duration_since(Instant::now()));
            port.pace(&mut free_at, frame.bytes.len());
            if !port.is_cut.load(Ordering::Relaxed) {
                // A host that has not taken its device up misses it.
                let _missed = (&port.device).write(&frame.bytes);
            }
        }
    }

    fn command(&self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let (verb, port) = (words.next()?, self.ports.get(words.next()?.parse::<usize>().ok()?)?);
        let value = words.next()?.parse().ok()?;
        match verb {
            "distance" => port.distance_us.store(value, Ordering::Relaxed),
            "link" => port.is_cut.store(value == 0, Ordering::Relaxed),
            "rate" => port.bytes_per_second.store(value, Ordering::Relaxed),
            _ => return None,
        }
        Some(())
    }
}

/// A new device `eth0` in the network namespace of a process.
fn device(process: &str) -> io::Result<File> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    // SAFETY: the descriptor is open; this thread alone enters the namespace.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: zeroes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, letter) in request.ifr_name.iter_mut().zip(b"eth0") {
        *target = *letter as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: it reads and writes the request, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it takes a number.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn main() -> io::Result<()> {
    let processes: Vec<String> = std::env::args().skip(1).collect();
    if processes.is_empty() {
        return Err(io::Error::other("usage: switch PROCESS..."));
    }
    let mut ports = Vec::new();
    for process in &processes {
        let device = device(process).map_err(|error| io::Error::other(format!("a device for process {process}: {error}")))?;
        ports.push(Port {
            device,
            distance_us: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            queue: Mutex::default(),
            has_frames: Condvar::new(),
        });
    }
    let switch = Arc::new(Switch { ports, hosts: Mutex::default() });
    for number in 0..processes.len() {
        let (receiving, delivering) = (switch.clone(), switch.clone());
        thread::spawn(move || receiving.receive(number));
        thread::spawn(move || delivering.deliver(number));
    }
    writeln!(io::stdout(), "ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if switch.command(&line).is_none() {
            return Err(io::Error::other(format!("{line:?} is no command")));
        }
        writeln!(io::stdout(), "ok")?;
    }
    Ok(())
}
