//! `tintype key`: the ways into an encrypted repository.

use serde_json::json;

use super::super::config::{read_key_file, read_secret};
use super::super::control_args::{KeyAction, KeyArgs};
use super::super::failure::{Exit, Failure};
use super::super::wiring::Session;
use crate::model::time::Timestamp;
use crate::repo::Secret;

/// Lists, adds or removes key boxes.
pub async fn run(session: &Session, args: KeyArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    match args.action {
        KeyAction::List => {
            let boxes = repository.key_boxes().await?;
            let line = |entry: &crate::repo::KeyBoxEntry| {
                format!("{}  {:<10}  {}  {}\n", entry.id, entry.kind, Timestamp(entry.created_at), entry.label)
            };
            let text =
                if boxes.is_empty() { "the repository is not encrypted\n".to_owned() } else { boxes.iter().map(line).collect() };
            let value: Vec<_> = boxes
                .iter()
                .map(|entry| json!({"id": entry.id, "kind": entry.kind, "label": entry.label, "created_at": entry.created_at}))
                .collect();
            session.output.result(&text, &json!({"keys": value}));
        }
        KeyAction::Add { new_password_file, new_key_file, label } => {
            let secret = match (new_password_file, new_key_file) {
                (Some(path), _) => Secret::Passphrase(read_secret(&path)?),
                (None, Some(path)) => Secret::KeyFile(read_key_file(&path)?),
                (None, None) => return Err(Failure::usage("neither --new-password-file nor --new-key-file was given")),
            };
            let id = repository.add_key(&secret, &label, session.now().0).await?;
            session.output.result(&format!("added key box {id}\n"), &json!({"id": id}));
        }
        KeyAction::Remove { id, yes } => {
            let boxes = repository.key_boxes().await?;
            let entry = boxes.iter().find(|entry| entry.id == id);
            let entry = entry
                .ok_or_else(|| Failure::new("not_found", format!("there is no key box {id}")).hint("see `tintype key list`"))?;
            if !yes {
                let text = format!(
                    "would remove key box {id} ({} {:?}); {} would be left\nnext: say it again with --yes\n",
                    entry.kind,
                    entry.label,
                    boxes.len() - 1
                );
                session.output.result(&text, &json!({"would_remove": id}));
                return Ok(Exit::Nothing);
            }
            repository.remove_key(id).await?;
            session.output.result(&format!("removed key box {id}\n"), &json!({"removed": id}));
        }
    }
    Ok(Exit::Done)
}
