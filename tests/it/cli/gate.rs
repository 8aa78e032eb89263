//! A door between a program and a server, at which the test decides what passes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is done with bytes of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// They go on to the server.
    On,
    /// They stay here, and the program waits.
    Never,
    /// The connection is cut.
    Cut,
}

type Rule = Box<dyn FnMut(&[u8]) -> Pass + Send>;

/// Passes connections on until it is dropped.
pub struct Gate {
    pub port: u16,
    is_over: Arc<AtomicBool>,
    rule: Arc<Mutex<Rule>>,
}

impl Gate {
    /// Before the server at `port`; `rule` sees what programs send, as it arrives.
    pub fn before(server: u16, rule: impl FnMut(&[u8]) -> Pass + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (is_over, rule): (_, Arc<Mutex<Rule>>) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Box::new(rule))));
        let gate = Self { port, is_over: is_over.clone(), rule: rule.clone() };
        std::thread::spawn(move || {
            for inside in listener.incoming().flatten() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(outside) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { continue };
                let back = (outside.try_clone().expect("a handle"), inside.try_clone().expect("a handle"));
                let (rule, over) = (rule.clone(), is_over.clone());
                std::thread::spawn(move || carry(inside, outside, &over, |bytes| (rule.lock().expect("no panic"))(bytes)));
                let over = is_over.clone();
                std::thread::spawn(move || carry(back.0, back.1, &over, |_| Pass::On));
            }
        });
        gate
    }

    /// From now on another rule.
    pub fn rule(&self, rule: impl FnMut(&[u8]) -> Pass + Send + 'static) {
        *self.rule.lock().expect("no panic") = Box::new(rule);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_over: &AtomicBool, mut pass: impl FnMut(&[u8]) -> Pass) {
    from.set_read_timeout(Some(Duration::from_millis(100))).expect("a limit");
    let mut buffer = vec![0; 1 << 16];
    while !is_over.load(Ordering::SeqCst) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => match pass(&buffer[..length]) {
                Pass::On if to.write_all(&buffer[..length]).is_ok() => {}
                Pass::Never => {}
                _ => break,
            },
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Whether the bytes hold a word, in any case.
pub fn has(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}
