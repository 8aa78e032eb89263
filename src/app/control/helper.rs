//! `mount -t tintype`, fstab and systemd's mount units: this program under the name that mount(8) looks for.
//!
//! mount(8) calls `mount.tintype SOURCE TARGET [-sfnv] [-t TYPE] [-o OPTIONS]`. That becomes a command line of `tintype
//! mount`, so that what may be said there is said in one place. An option that is not known is refused by name: a
//! misspelt `allow_othr` in fstab must not go unnoticed until a night's backup fails.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::super::failure::Failure;

/// Names that this program may be installed under, as links.
const NAMES: [&str; 2] = ["mount.tintype", "mount.fuse.tintype"];
/// The source that stands for the configuration's repository.
const CONFIGURED: &str = "none";
/// Options of mount(8), fstab and systemd themselves, and what the mount is anyway.
const IGNORED: &[&str] = &[
    "_netdev",
    "auto",
    "comment",
    "default_permissions",
    "defaults",
    "group",
    "lazytime",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "user",
    "users",
];
/// What the mount never is.
const NEVER: &[&str] = &["dev", "exec", "rw", "suid"];
/// For SELinux: the kernel's.
pub const SECURITY: [&str; 4] = ["context", "defcontext", "fscontext", "rootcontext"];
/// Options with a value, which `tintype mount` has under the same words.
const VALUED: &[&str] = &["cache_dir", "cache_size", "config", "deadline", "key_file", "memory", "owner", "password_file"];

/// What mount(8) asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// The command line of `tintype` that does it; absent: nothing is to be done (`-f`).
    pub command: Option<Vec<OsString>>,
    /// What is to be said beforehand.
    pub notes: Vec<String>,
}

/// Whether a program of this name is to behave as mount(8)'s helper.
pub fn is_meant(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| NAMES.iter().any(|known| name == *known))
}

/// Translates what mount(8) says behind the program's name.
pub fn translate(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, Failure> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let (mut is_fake, mut is_sloppy, mut is_verbose) = (false, false, false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let flags = match argument.to_str().and_then(|text| text.strip_prefix('-')) {
            Some(flags) if !flags.is_empty() => flags.to_owned(),
            _ => {
                places.push(argument);
                continue;
            }
        };
        for (at, flag) in flags.char_indices() {
            let value = |arguments: &mut dyn Iterator<Item = OsString>| match &flags[at + 1..] {
                "" => arguments.next().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default(),
                rest => rest.to_owned(),
            };
            match flag {
                'f' => is_fake = true,
                's' => is_sloppy = true,
                'v' => is_verbose = true,
                'n' => {}
                'o' => {
                    options.extend(split(&value(&mut arguments)));
                    break;
                }
                't' => {
                    value(&mut arguments);
                    break;
                }
                _ => return Err(usage(format!("-{flag} is not known"))),
            }
        }
    }
    let [source, target] = <[OsString; 2]>::try_from(places).map_err(|_| usage("a source and a target are wanted".to_owned()))?;
    let mut asked = Asked { command: None, notes: Vec::new() };
    let mut command: Vec<OsString> = vec!["tintype".into(), if is_verbose { "-v" } else { "-q" }.into()];
    if source != CONFIGURED {
        command.extend(["--repository".into(), source.clone()]);
    }
    command.extend(["mount".into(), target, "--source-name".into(), source]);
    for option in options {
        match translated(&option) {
            Ok(words) => command.extend(words.into_iter().map(OsString::from)),
            Err(failure) if is_sloppy => asked.notes.push(failure.message),
            Err(failure) => return Err(failure),
        }
    }
    asked.command = (!is_fake).then_some(command);
    Ok(asked)
}

/// At commas, except those between quotes: a security context may have some.
fn split(options: &str) -> Vec<String> {
    let mut is_quoted = false;
    let parts = options.split(|character| {
        is_quoted ^= character == '"';
        character == ',' && !is_quoted
    });
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn translated(option: &str) -> Result<Vec<String>, Failure> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    match value {
        None if name == "allow_other" => Ok(vec!["--allow-other".to_owned()]),
        None if NEVER.contains(&name) => {
            Err(usage(format!("{name}: snapshots are only looked at"))
                .hint("say -o ro, which has nosuid, nodev and noexec with it"))
        }
        Some(value) if VALUED.contains(&name) => Ok(vec![format!("--{}", name.replace('_', "-")), value.to_owned()]),
        Some(_) if SECURITY.contains(&name) => Ok(vec!["--kernel-option".to_owned(), option.to_owned()]),
        _ if IGNORED.contains(&name) || name.to_ascii_lowercase().starts_with("x-") => Ok(Vec::new()),
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Failure {
    let known = VALUED.iter().chain(IGNORED).chain(&SECURITY).chain(&["allow_other"]);
    let nearest = known.map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    let failure = usage(format!("option {name} is not known"));
    match nearest {
        Some((distance, nearest)) if distance <= name.len() / 3 + 1 => failure.hint(format!("did you mean {nearest}?")),
        _ => failure,
    }
}

fn usage(message: String) -> Failure {
    Failure::usage(format!("mount: {message}")).hint("mount -t tintype REPOSITORY MOUNTPOINT -o ro,allow_other; see README")
}

/// An option for the kernel, as `--kernel-option` takes it.
pub fn parse_kernel_option(option: &str) -> Result<String, String> {
    match option.split_once('=') {
        Some((name, _)) if SECURITY.contains(&name) => Ok(option.to_owned()),
        _ => Err(format!("only {} are passed on", SECURITY.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate_text(text: &str) -> Result<Asked, Failure> {
        translate(text.split(' ').map(OsString::from))
    }

    fn command(text: &str) -> String {
        let asked = translate_text(text).expect("is understood");
        asked.command.expect("something").join(OsStr::new(" ")).into_string().expect("text")
    }

    #[test]
    fn the_name_decides() {
        assert!(is_meant("/sbin/mount.tintype".as_ref()) && is_meant("mount.fuse.tintype".as_ref()));
        assert!(!is_meant("/usr/bin/tintype".as_ref()) && !is_meant("".as_ref()));
    }

    #[test]
    fn options_become_those_of_the_command() {
        let begin = "tintype -q --repository s3://b/p mount /mnt --source-name s3://b/p";
        assert_eq!(command("s3://b/p /mnt -o ro"), begin);
        assert_eq!(command("-n -t tintype s3://b/p /mnt -o ro,_netdev,nofail,x-systemd.automount,noauto,user"), begin);
        assert_eq!(
            command("s3://b/p /mnt -oallow_other,owner=a:b,key_file=/k -o deadline=5s,memory=64MiB,config=/c,password_file=/p"),
            format!(
                "{begin} --allow-other --owner a:b --key-file /k --deadline 5s --memory 64MiB --config /c --password-file /p"
            )
        );
        assert_eq!(command("none /mnt -v"), "tintype -v mount /mnt --source-name none");
        assert_eq!(
            command("none /mnt -o context=\"u:r:t:s0:c1,c2\",ro"),
            "tintype -q mount /mnt --source-name none --kernel-option context=\"u:r:t:s0:c1,c2\""
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, word) in [
            ("a /b -o rw", "rw"),
            ("a /b -o ro,suid", "suid"),
            ("a /b -o allow_othr", "allow_other"),
            ("a /b -o remount", "remount"),
            ("a /b -o key_file", "key_file"),
            ("a", "source"),
            ("a /b /c", "target"),
            ("a /b -N 1", "-N"),
        ] {
            let failure = translate_text(text).expect_err(text);
            let said = format!("{} {}", failure.message, failure.hint.unwrap_or_default());
            assert!(said.contains(word), "{text}: {said}");
        }
    }

    #[test]
    fn sloppy_lets_it_pass_and_fake_does_nothing() {
        assert_eq!(translate_text("a /b -s -o typo,ro").expect("sloppy").notes, ["mount: option typo is not known"]);
        assert_eq!(translate_text("a /b -f").expect("fake").command, None);
    }

    #[test]
    fn the_kernel_gets_security_contexts_alone() {
        assert!(parse_kernel_option("context=u:r:t:s0").is_ok());
        assert!(parse_kernel_option("allow_other").is_err() && parse_kernel_option("max_read=1").is_err());
    }
}
