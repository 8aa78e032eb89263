//! Names of users and groups by their numbers, as this host's databases have them.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::model::manifest::Ownership;

/// Largest answer of the user and group databases that is waited for; groups with thousands of members take 64 KiB.
const NAME_BUFFER_BYTES_MAX: usize = 1 << 20;

/// Names of users and groups, each asked for once.
#[derive(Default)]
pub(super) struct Owners {
    users: HashMap<u32, Option<String>>,
    groups: HashMap<u32, Option<String>>,
}

impl Owners {
    /// Who owns what `meta` describes.
    pub fn of(&mut self, meta: &Metadata) -> Ownership {
        let (uid, gid) = (meta.uid(), meta.gid());
        let user = self.users.entry(uid).or_insert_with(|| user_name(uid)).clone();
        let group = self.groups.entry(gid).or_insert_with(|| group_name(gid)).clone();
        Ownership { uid, gid, user, group }
    }
}

fn user_name(uid: u32) -> Option<String> {
    looked_up(|buffer| {
        // SAFETY: a passwd record is plain pointers and numbers, for which zero is a value.
        let mut record: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call, and the length is the buffer's own.
        let fault = unsafe { libc::getpwuid_r(uid, &raw mut record, buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
        (fault, if found.is_null() { std::ptr::null() } else { record.pw_name })
    })
}

fn group_name(gid: u32) -> Option<String> {
    looked_up(|buffer| {
        // SAFETY: a group record is plain pointers and numbers, for which zero is a value.
        let mut record: libc::group = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call, and the length is the buffer's own.
        let fault = unsafe { libc::getgrgid_r(gid, &raw mut record, buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
        (fault, if found.is_null() { std::ptr::null() } else { record.gr_name })
    })
}

/// Asks with a growing buffer; what cannot be found out is `None`. The pointer that `ask` returns is null or a C string
/// within the buffer.
fn looked_up(ask: impl Fn(&mut [libc::c_char]) -> (libc::c_int, *const libc::c_char)) -> Option<String> {
    let mut buffer = vec![0; 1024];
    loop {
        let (fault, name) = ask(&mut buffer);
        if fault == libc::ERANGE && buffer.len() < NAME_BUFFER_BYTES_MAX {
            buffer.resize(buffer.len() * 4, 0);
            continue;
        }
        if fault != 0 || name.is_null() {
            return None;
        }
        // SAFETY: the database wrote a terminated string into the buffer, which is still there.
        return unsafe { std::ffi::CStr::from_ptr(name) }.to_str().ok().map(str::to_owned);
    }
}
