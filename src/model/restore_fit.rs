//! How a stored node is made to fit its target: files under the names that the target reads, and nothing that it would pass over.

use serde::{Deserialize, Serialize};

use super::restore_facts::{DirectoryFacts, ServerFacts, SourceFacts, StoreLayout, TargetFacts};
use super::restore_plan::{RefusalCode, Refusals};

/// What is renamed and made so that the target finds its data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// Names from the node's directory, and what they are called at the target.
    pub renames: Vec<(String, String)>,
    /// Append-only files made over the dump, which a server with `appendonly yes` would pass over.
    pub append_only: Option<MadeAppendOnly>,
    /// The manifest of the append-only files at the target, where it reads those that were captured.
    #[serde(default)]
    pub append_manifest: Option<String>,
}

/// Append-only files that are made over a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeAppendOnly {
    /// Name of the dump at the target.
    pub dump_file: String,
    /// Directory to make; `None`: a single file that begins with the dump, as before Redis 7.
    pub directory: Option<String>,
    /// First part of the names, or the single file's name.
    pub file: String,
}

/// What must be renamed and made so that the target does not start empty.
pub(super) fn fit(
    source: &SourceFacts,
    target: &TargetFacts,
    directory: &DirectoryFacts,
    refusals: &mut Refusals,
    warnings: &mut Vec<String>,
) -> Fit {
    let from = StoreLayout::from_settings(&source.description.settings, &source.description.version);
    let mut to = target.server.as_ref().map_or_else(|| from.clone(), ServerFacts::layout);
    if target.server.is_none() && directory.has_append_directory {
        // It does not run, so nobody tells; append-only files beside a dump do no harm where they are not read.
        to.has_append_only = true;
        to.append_directory.get_or_insert_with(|| "appendonlydir".to_owned());
    }
    let has = |name: &str| source.names.iter().any(|own| own == name);
    let has_dump = has(&from.dump_file);
    let from_append = from.append_directory.clone().unwrap_or_else(|| from.append_file.clone());
    let has_append = has(&from_append);
    let mut fit = Fit::default();
    let mut rename = |old: &str, new: &str| {
        if old != new && has(old) {
            fit.renames.push((old.to_owned(), new.to_owned()));
        }
    };
    rename(&from.dump_file, &to.dump_file);
    let to_append = to.append_directory.clone().unwrap_or_else(|| to.append_file.clone());
    let is_same_form = from.append_directory.is_some() == to.append_directory.is_some();
    match (&from.append_directory, &to.append_directory) {
        (Some(old), Some(new)) => {
            rename(old, new);
            if has_append && from.append_file != to.append_file {
                // The manifest is found by this name; the files that it names may be called anything.
                fit.renames.push((format!("{old}/{}.manifest", from.append_file), format!("{new}/{}.manifest", to.append_file)));
            }
        }
        // A single file is taken into the directory by the newer server itself.
        (None, Some(_) | None) => rename(&from.append_file, &to.append_file),
        (Some(_), None) => {}
    }
    let reads_stored = to.has_append_only && has_append && from.append_directory.is_some();
    if let Some(directory) = to.append_directory.as_ref().filter(|_| reads_stored) {
        fit.append_manifest = Some(format!("{directory}/{}.manifest", to.append_file));
    }
    if to.has_append_only && !has_append && has_dump {
        fit.append_only = Some(MadeAppendOnly {
            dump_file: to.dump_file.clone(),
            directory: to.append_directory.clone(),
            file: to.append_file.clone(),
        });
        warnings.push(format!(
            "{}: it has appendonly yes and the snapshot only a dump: {to_append} is made over the dump",
            target.node
        ));
    } else if !to.has_append_only && !has_dump && has_append {
        let next = "set appendonly yes at the target, or restore a snapshot that was captured by replication";
        refusals.add(
            RefusalCode::NothingToLoad,
            &target.node,
            "the snapshot holds append-only files only, and the target has appendonly no: it would start empty",
            next,
        );
    } else if to.has_append_only && has_append && !is_same_form && to.append_directory.is_none() {
        refusals.add(
            RefusalCode::NothingToLoad,
            &target.node,
            "its version does not know append-only directories: it would start empty",
            "restore into Redis 7 or newer",
        );
    } else if !has_dump && !has_append && source.description.store != "files" && !source.names.is_empty() {
        refusals.add(
            RefusalCode::NothingToLoad,
            &target.node,
            format!("the snapshot holds neither {} nor append-only files", from.dump_file),
            "look at it with `tintype list`",
        );
    }
    fit
}
