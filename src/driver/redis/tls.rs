//! TLS for the replication socket, which the `redis` crate does not open for us.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// Settles which cryptography rustls uses where it is asked without naming one. To be called before any TLS.
pub(super) fn use_one_provider() {
    // An error says that somebody settled it before, which serves as well.
    let _ = crypto::aws_lc_rs::default_provider().install_default();
}

/// Begins TLS on a connected socket; the error is in words.
pub(super) async fn connect(socket: TcpStream, host: &str, ca_file: Option<&Path>) -> Result<TlsStream<TcpStream>, String> {
    use_one_provider();
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| format!("ca_file {}: {error}", path.display()))?;
                roots.add(certificate).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            }
        }
        None => {
            // A host has many, and some that cannot be read are no reason to stop.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|error| format!("tls: {error}"))
}
