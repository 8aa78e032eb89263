//! Processes that read files at random and compare what they get with the originals.
//!
//! They read as programs do: at any place, over blocks and pages, near the end and behind it, by calls and by mappings. Now
//! and then they have the kernel drop what it holds of a file, and open it again.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use rustix::io::Errno;

use super::child::{again, hear};
use super::effort::Random;
use super::mapping::{Mapping, PAGE};
use super::mount::wait_for;

/// What a child is to do: see [`Task`].
const TASK: &str = "TINTYPE_READER_TASK";
/// The exit code of a reader whose daemon is gone.
const REFUSED: i32 = 3;

/// What readers do.
#[derive(Debug)]
pub struct Task<'a> {
    /// Where the files are shown.
    pub shown: &'a Path,
    /// Where they were taken from.
    pub originals: &'a Path,
    /// How many reads; absent: until nobody serves them.
    pub steps: Option<usize>,
}

/// A process that reads; it ends with this.
pub struct Reader {
    child: Child,
    output: ChildStdout,
}

/// What a reader did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Reads that gave what was asked for.
    pub reads: u64,
    /// Bytes that were compared, all equal.
    pub bytes: u64,
}

impl Reader {
    /// Begins, and returns when it reads.
    pub fn begin(task: &Task<'_>, random: &mut Random) -> Self {
        let (shown, originals) = (task.shown.display(), task.originals.display());
        let task = format!("{}\n{shown}\n{originals}", task.steps.map_or_else(String::new, |steps| steps.to_string()));
        let mut command = again("support::readers::a_child_that_reads");
        command.env(TASK, task).env("TINTYPE_SEED", random.next().to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut output = child.stdout.take().expect("is piped");
        hear(&mut output, "it reads");
        Self { child, output }
    }

    /// Waits for its end, which must be that of its task.
    pub fn ended(mut self) -> Tally {
        let status = self.child.wait().expect("our child");
        assert!(status.success(), "a reader ended with {status}");
        self.tally()
    }

    /// Waits for its end, which must come within `limit` because nobody serves it.
    pub fn refused(mut self, limit: Duration) -> Tally {
        wait_for("the end of a reader that nobody serves", limit, || self.child.try_wait().expect("our child").is_some());
        let status = self.child.wait().expect("our child");
        assert_eq!(status.code(), Some(REFUSED), "a reader ended with {status}");
        self.tally()
    }

    fn tally(&mut self) -> Tally {
        let mut said = String::new();
        self.output.read_to_string(&mut said).expect("readable");
        let mut numbers = said.split_whitespace().map_while(|word| word.parse().ok());
        Tally { reads: numbers.next().expect("a number"), bytes: numbers.next().expect("a number") }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: it is the process of a [`Reader`].
#[test]
#[ignore = "is run by other tests"]
fn a_child_that_reads() {
    let Ok(task) = std::env::var(TASK) else { return };
    let mut lines = task.lines();
    let mut line = || lines.next().expect("a line");
    let (steps, shown, originals) = (line().parse::<usize>().ok(), PathBuf::from(line()), PathBuf::from(line()));
    let mut random = Random::begin("reader");
    let mut work = Work::new(&shown, &originals, steps.is_some()).expect("is served");
    say("it reads");
    let mut step = || match steps {
        Some(steps) => (0..steps).try_for_each(|_| work.step(&mut random)),
        None => loop {
            if let Err(error) = work.step(&mut random) {
                break Err(error);
            }
        },
    };
    let result = step();
    say(&format!("{} {}", work.tally.reads, work.tally.bytes));
    if let Err(error) = result {
        let expected = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO];
        assert!(steps.is_none() && error.raw_os_error().is_some_and(|code| expected.contains(&code)), "{error}");
        std::process::exit(REFUSED);
    }
}

fn say(line: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).expect("the parent listens");
}

/// A file, open, and what it must hold.
struct Subject {
    path: PathBuf,
    file: File,
    original: Vec<u8>,
}

struct Work {
    subjects: Vec<Subject>,
    /// Whoever serves lives as long as this: every read is whole, and may be by mapping.
    is_lasting: bool,
    pipe: (PipeReader, PipeWriter),
    tally: Tally,
}

impl Work {
    fn new(shown: &Path, originals: &Path, is_lasting: bool) -> std::io::Result<Self> {
        let mut subjects = Vec::new();
        let mut directories = vec![originals.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory)? {
                let original = entry?.path();
                if original.is_dir() {
                    directories.push(original);
                    continue;
                }
                let path = shown.join(original.strip_prefix(originals).expect("below it"));
                subjects.push(Subject { file: File::open(&path)?, path, original: std::fs::read(original)? });
            }
        }
        // The order of a directory is nobody's business, and a seed is to mean the same again.
        subjects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Self { subjects, is_lasting, pipe: std::io::pipe()?, tally: Tally::default() })
    }

    fn step(&mut self, random: &mut Random) -> std::io::Result<()> {
        let count = self.subjects.len();
        let subject = &mut self.subjects[below(random, count)];
        match random.next() % 16 {
            0 | 1 => subject.file = File::open(&subject.path)?,
            2..8 => rustix::fs::fadvise(subject.file.as_fd(), 0, None, rustix::fs::Advice::DontNeed)?,
            _ => {}
        }
        let (offset, length) = stretch(random, subject.original.len());
        let bytes = if self.is_lasting && random.next().is_multiple_of(2) {
            mapped(subject, offset, length, &mut self.pipe)?
        } else {
            called(subject, offset, length, self.is_lasting)?
        };
        self.tally.reads += 1;
        self.tally.bytes += bytes as u64;
        Ok(())
    }
}

/// A number below `limit`, 0 when that is 0.
fn below(random: &mut Random, limit: usize) -> usize {
    random.next() as usize % limit.max(1)
}

/// Where to read in a file of `size` bytes, and how much.
fn stretch(random: &mut Random, size: usize) -> (usize, usize) {
    match random.next() % 5 {
        // Anywhere, about as much as programs ask for.
        0 => (below(random, size), 1 + below(random, 20_000)),
        // A lot.
        1 => (below(random, size), 1 + below(random, 1 << 20)),
        // The last of one page and the first of the next.
        2 => ((below(random, size) / PAGE * PAGE).saturating_sub(below(random, 10)), 1 + below(random, 40)),
        // The end.
        3 => (size.saturating_sub(below(random, 10_000)), 1 + below(random, 20_000)),
        // Behind it.
        _ => (size + below(random, 10_000), 1 + below(random, 10_000)),
    }
}

/// What of `offset..offset + length` there is.
fn part(original: &[u8], offset: usize, length: usize) -> &[u8] {
    &original[offset.min(original.len())..(offset + length).min(original.len())]
}

fn called(subject: &Subject, offset: usize, length: usize, is_whole: bool) -> std::io::Result<usize> {
    let expected = part(&subject.original, offset, length);
    let mut buffer = vec![0x55; length];
    let got = subject.file.read_at(&mut buffer, offset as u64)?;
    let path = subject.path.display();
    assert!(got == expected.len() || !is_whole && got < expected.len(), "{path}: {got} of {length} bytes at {offset}");
    assert!(buffer[..got] == expected[..got], "{path}: wrong bytes at {offset}, {length} long");
    Ok(got)
}

fn mapped(subject: &Subject, offset: usize, length: usize, pipe: &mut (PipeReader, PipeWriter)) -> std::io::Result<usize> {
    let (size, path) = (subject.original.len(), subject.path.display());
    let first = offset / PAGE * PAGE;
    let length = offset - first + length;
    let mut mapping = Mapping::new(&subject.file, first, length, libc::PROT_READ, libc::MAP_SHARED)?;
    let expected = part(&subject.original, first, length);
    // What is left of the file's last page is zeros.
    let readable = length.min(size.next_multiple_of(PAGE).saturating_sub(first));
    let bytes = mapping.bytes(readable);
    assert!(bytes[..expected.len()] == *expected, "{path}: wrong bytes mapped at {first}, {length} long");
    assert!(bytes[expected.len()..].iter().all(|byte| *byte == 0), "{path}: mapped at {first}, {length} long: no zeros");
    if readable < length {
        assert_eq!(mapping.peek(readable, &pipe.1), Err(Errno::FAULT), "{path}: a page behind the end at {first}");
    }
    if readable > 0 {
        mapping.peek(readable - 1, &pipe.1)?;
        pipe.0.read_exact(&mut [0])?;
    }
    Ok(expected.len())
}
