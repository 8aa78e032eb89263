//! TLS between coordinators and agents. With a certificate authority of one's own both sides show a certificate of it; without
//! one an agent shows a certificate that the host's authorities know, and the coordinator a token.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Where certificates are, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This host's certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whom the other side must be certified by.
    pub ca: Option<PathBuf>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn at<E: Display>(path: &Path) -> impl Fn(E) -> String {
    move |error| format!("{}: {error}", path.display())
}

fn identity(files: &TlsFiles) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let certificates = CertificateDer::pem_file_iter(&files.cert).map_err(at(&files.cert))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(at(&files.cert))?;
    if certificates.is_empty() {
        return Err(format!("{}: holds no certificate", files.cert.display()));
    }
    Ok((certificates, PrivateKeyDer::from_pem_file(&files.key).map_err(at(&files.key))?))
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(at(path))? {
        roots.add(certificate.map_err(at(path))?).map_err(at(path))?;
    }
    if roots.is_empty() { Err(format!("{}: holds no certificate", path.display())) } else { Ok(roots) }
}

/// For an agent. With `ca` whoever has no certificate of it is turned away. The error names the file.
pub fn server(files: &TlsFiles) -> Result<ServerConfig, String> {
    let (certificates, key) = identity(files)?;
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(at(&files.cert))?;
    let builder = match &files.ca {
        Some(ca) => {
            let roots = Arc::new(authorities(ca)?);
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(at(ca))?,
            )
        }
        None => builder.with_no_client_auth(),
    };
    builder.with_single_cert(certificates, key).map_err(at(&files.cert))
}

/// For a coordinator; without files of its own it trusts whom the host trusts. The error names the file.
pub fn client(files: Option<&TlsFiles>) -> Result<ClientConfig, String> {
    let roots = match files.and_then(|files| files.ca.as_ref()) {
        Some(ca) => authorities(ca)?,
        None => {
            let mut roots = RootCertStore::empty();
            // A host has many, and some that cannot be read are no reason to stop.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match files {
        Some(files) => {
            let (certificates, key) = identity(files)?;
            builder.with_client_auth_cert(certificates, key).map_err(at(&files.cert))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}
