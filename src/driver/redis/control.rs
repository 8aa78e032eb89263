//! The control connection: commands with a limit on every answer, and errors that say what to do.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError, Value,
};
use tokio::time::timeout;

use crate::driver::DriverError;

use super::options::RedisOptions;
use super::reply::Fields;

/// The rights that a capture by replication needs, and a restore; `+config|set` and `+client|reply` only where the sync delay
/// must be set aside, `+pubsub|numsub` to find out whether Sentinel watches a master with replicas.
pub const RIGHTS: &str = "+ping +info +time +config|get +config|set +client|pause +client|unpause +client|setname +client|list \
                          +client|reply +psync +replconf +bgsave +cluster|nodes +cluster|info +pubsub|numsub";

/// One answer of a pipeline.
pub(super) type Answer = Result<Value, RedisError>;

pub(super) struct Control {
    connection: MultiplexedConnection,
    node: String,
    user: String,
    limit: Duration,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Control {
    /// Connects and authenticates.
    pub(super) async fn open(options: &RedisOptions) -> Result<Self, DriverError> {
        let endpoint = options.endpoint()?;
        let node = options.node.to_string();
        let user = options.user.clone().unwrap_or_else(|| "default".to_owned());
        let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(password) = &options.password {
            login = login.set_password(password.reveal());
            if let Some(user) = &options.user {
                login = login.set_username(user);
            }
        }
        let address = if endpoint.tls {
            super::tls::use_one_provider();
            ConnectionAddr::TcpTls { host: endpoint.host.clone(), port: endpoint.port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(endpoint.host.clone(), endpoint.port)
        };
        let fault = |error: &RedisError| fault(&node, &user, "AUTH", error, options.connect_limit);
        let described = address.into_connection_info().map_err(|error| fault(&error))?.set_redis_settings(login);
        let client = match (&options.ca_file, endpoint.tls) {
            (Some(path), true) => {
                let certificates = std::fs::read(path).map_err(|error| DriverError::Refused {
                    node: node.clone(),
                    reason: format!("ca_file {}: {error}", path.display()),
                })?;
                Client::build_with_tls(described, redis::TlsCertificates { client_tls: None, root_cert: Some(certificates) })
            }
            _ => Client::open(described),
        }
        .map_err(|error| fault(&error))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_limit))
            .set_response_timeout(Some(options.answer_limit));
        let connection = timeout(options.connect_limit * 2, client.get_multiplexed_async_connection_with_config(&config))
            .await
            .map_err(|_| DriverError::Unreachable {
                node: node.clone(),
                reason: format!("{endpoint}: no connection within {:?}", options.connect_limit),
            })?
            .map_err(|error| fault(&error))?;
        Ok(Self { connection, node, user, limit: options.answer_limit })
    }

    /// One command; an error answer is an error.
    pub(super) async fn ask(&mut self, command: &[&str]) -> Result<Value, DriverError> {
        let answer = self.ask_all(&[command], self.limit).await?.remove(0);
        answer.map_err(|error| self.fault(&command_name(command), &error))
    }

    /// One command whose answer is text.
    pub(super) async fn text(&mut self, command: &[&str]) -> Result<String, DriverError> {
        self.ask(command).await.map(|value| text(&value))
    }

    /// Fields of the named sections of `INFO`.
    pub(super) async fn info(&mut self, sections: &[&str]) -> Result<Fields, DriverError> {
        let commands: Vec<[&str; 2]> = sections.iter().map(|section| ["INFO", *section]).collect();
        let commands: Vec<&[&str]> = commands.iter().map(<[&str; 2]>::as_slice).collect();
        let mut fields = Fields::default();
        for answer in self.ask_all(&commands, self.limit).await? {
            fields.add(&text(&answer.map_err(|error| self.fault("INFO", &error))?));
        }
        Ok(fields)
    }

    /// The value of a setting; `None` where the server does not know it.
    pub(super) async fn setting(&mut self, name: &str) -> Result<Option<String>, DriverError> {
        let value = self.ask(&["CONFIG", "GET", name]).await?;
        Ok(match value {
            Value::Array(pair) => pair.get(1).map(text),
            Value::Map(pairs) => pairs.first().map(|(_, value)| text(value)),
            _ => None,
        })
    }

    /// Many commands in one write. The outer error is the connection's; every answer may be an error of its own.
    pub(super) async fn ask_all(&mut self, commands: &[&[&str]], limit: Duration) -> Result<Vec<Answer>, DriverError> {
        let mut pipeline = redis::pipe();
        for command in commands {
            let mut packed = redis::cmd(command[0]);
            for argument in &command[1..] {
                packed.arg(*argument);
            }
            pipeline.add_command(packed);
        }
        pipeline.ignore_errors();
        self.connection.set_response_timeout(limit);
        let what = commands.iter().map(|command| command_name(command)).collect::<Vec<_>>().join(", ");
        let answers = timeout(limit, pipeline.query_async::<Vec<Answer>>(&mut self.connection)).await;
        let answers = match answers {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => return Err(fault(&self.node, &self.user, &what, &error, limit)),
            Err(_) => return Err(DriverError::DeadlineExceeded { node: self.node.clone(), what, limit }),
        };
        if answers.len() == commands.len() {
            Ok(answers)
        } else {
            Err(DriverError::Unreachable { node: self.node.clone(), reason: format!("{what}: an answer is missing") })
        }
    }

    /// An error answer, in our words.
    pub(super) fn fault(&self, what: &str, error: &RedisError) -> DriverError {
        fault(&self.node, &self.user, what, error, self.limit)
    }
}

/// `CLIENT PAUSE` of `CLIENT PAUSE 2000 WRITE`, `SET` of `SET k v`.
fn command_name(command: &[&str]) -> String {
    let words = if matches!(command[0], "CLIENT" | "CONFIG" | "CLUSTER" | "PUBSUB") { 2 } else { 1 };
    command[..words.min(command.len())].join(" ")
}

/// The text of an answer; empty for what is no text.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        Value::Okay => "OK".to_owned(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

/// How to permit a command that the ACL refused.
pub(super) fn permission(user: &str, what: &str) -> String {
    let right = what.to_lowercase().replace(' ', "|");
    format!("the ACL does not permit {what}; run `ACL SETUSER {user} +{right}` on the node (all that is needed: {RIGHTS})")
}

/// What a refused login means.
pub(super) fn login_refused(user: &str, reason: &str) -> String {
    format!("the login as user '{user}' is refused ({reason}); check user and password of this node in the configuration")
}

fn fault(node: &str, user: &str, what: &str, error: &RedisError, limit: Duration) -> DriverError {
    let node = node.to_owned();
    let reason = error.to_string();
    let code = error.code().unwrap_or_default();
    if code == "NOPERM" || reason.contains("NOPERM") {
        return DriverError::Denied { node, reason: permission(user, what) };
    }
    let refused_login = ["NOAUTH", "WRONGPASS"].iter().any(|word| code == *word || reason.contains(word));
    if refused_login || error.kind() == ErrorKind::AuthenticationFailed {
        return DriverError::Denied { node, reason: login_refused(user, if code.is_empty() { "wrong password" } else { code }) };
    }
    if code == "LOADING" || reason.contains("LOADING") {
        return DriverError::Refused { node, reason: "it is still loading its data".to_owned() };
    }
    if error.is_timeout() {
        return DriverError::DeadlineExceeded { node, what: what.to_owned(), limit };
    }
    if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() {
        return DriverError::Unreachable { node, reason };
    }
    DriverError::Refused { node, reason: format!("{what}: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_named_with_its_fix() {
        let text = permission("bk", &command_name(&["CLIENT", "PAUSE", "2000", "WRITE"]));
        assert!(text.contains("`ACL SETUSER bk +client|pause`"), "{text}");
        assert!(permission("bk", &command_name(&["PSYNC", "?", "-1"])).contains("+psync`"));
    }
}
