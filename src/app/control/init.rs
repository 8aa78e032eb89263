//! `tintype init`: create a repository and record what its object store can do.

use serde_json::json;

use super::super::control_args::InitArgs;
use super::super::failure::{Exit, Failure};
use super::super::wiring::Session;
use crate::object::probe;
use crate::repo::{Repository, Secret};

/// Creates the repository.
pub async fn run(session: &Session, args: InitArgs) -> Result<Exit, Failure> {
    let secret = session.secret()?;
    let secret: Option<&Secret> = match (&secret, args.no_encryption) {
        (Some(_), true) => {
            return Err(
                Failure::usage("--no-encryption was said, but a passphrase or key file was given").hint("leave one of them out")
            );
        }
        (None, false) => {
            let hint = "write a passphrase into a file (umask 077) and say --password-file FILE, or decide for --no-encryption";
            return Err(Failure::usage("a new repository is encrypted, and no passphrase was given").hint(hint));
        }
        (secret, _) => secret.as_ref(),
    };
    let store = session.store(true)?;
    let capabilities = probe(store.as_ref()).await?;
    let repository = Repository::init(store, secret, capabilities, session.now().0).await?;
    let location = repository.location();
    let mut text = format!("created a repository at {location}\n");
    if !repository.keeps_conditions() {
        text.push_str("note: this store refuses no second writer: take snapshots of a cluster on one host alone, and name it as `coordinator` in the configuration\n");
    }
    if secret.is_some() {
        text.push_str("note: without the passphrase or key file nobody can read it, you included; `tintype key add` makes a second way in\n");
    }
    text.push_str(&format!("next: tintype --repository {} snapshot NAME --redis HOST:PORT\n", session.url()?));
    let value = json!({"location": location, "uuid": repository.descriptor().repository, "encrypted": secret.is_some(), "capabilities": capabilities});
    session.output.result(&text, &value);
    Ok(Exit::Done)
}
