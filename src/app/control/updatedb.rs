//! Whether `updatedb` walks mounts of tintype at night, which would look at every file of every snapshot.

use std::path::Path;

use crate::fuse::KERNEL_TYPE;

const CONFIGURATION: &str = "/etc/updatedb.conf";

/// What was found, and what to run where it should be otherwise.
pub fn look() -> (String, Option<String>) {
    match std::fs::read_to_string(Path::new(CONFIGURATION)) {
        Ok(text) => judge(&text),
        Err(_) => (format!("there is no {CONFIGURATION}, so nothing walks the mount at night"), None),
    }
}

fn judge(text: &str) -> (String, Option<String>) {
    let value = |line: &str| {
        let (key, value) = line.split('#').next()?.split_once('=')?;
        (key.trim() == "PRUNEFS").then(|| value.trim().trim_matches('"').to_owned())
    };
    let pruned = text.lines().filter_map(value).next_back();
    let fix = match &pruned {
        Some(kinds) if kinds.split_whitespace().any(|kind| kind.eq_ignore_ascii_case(KERNEL_TYPE)) => {
            return (format!("PRUNEFS of {CONFIGURATION} has {KERNEL_TYPE}"), None);
        }
        Some(_) => format!("sed -i 's/^\\( *PRUNEFS *= *\"\\)/\\1{KERNEL_TYPE} /' {CONFIGURATION}"),
        None => format!("echo 'PRUNEFS=\"{KERNEL_TYPE}\"' >> {CONFIGURATION}"),
    };
    (format!("updatedb would walk the mount: PRUNEFS of {CONFIGURATION} lacks {KERNEL_TYPE}"), Some(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pruned_is_fine_and_what_is_not_has_a_fix() {
        for fine in ["PRUNEFS=\"nfs fuse.tintype\"", "PRUNEFS = \"NFS FUSE.TINTYPE proc\" # x\n", "PRUNEFS=fuse.tintype"] {
            assert_eq!(judge(fine).1, None, "{fine}");
        }
        assert!(judge("PRUNEFS=\"nfs\"\n").1.expect("a fix").starts_with("sed -i"));
        for without in ["", "# PRUNEFS=\"fuse.tintype\"", "PRUNEPATHS=\"/tmp\"\n"] {
            assert!(judge(without).1.expect("a fix").starts_with("echo"), "{without}");
        }
    }
}
