//! Builds the client: region, credentials, timeouts, checksums.

#![expect(deprecated, reason = "the successors of `ProfileFiles` live in a crate that is not ours to name")]

use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::{BehaviorVersion, Region, environment::EnvironmentVariableRegionProvider, meta::region::RegionProviderChain};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation};

use super::options::S3Options;

/// Where nobody names a region: what stores that know none sign with.
const ANY_REGION: &str = "us-east-1";

/// Reads the environment and the profile files, asks the network for nothing but a region that only the machine's own
/// metadata service knows (never with an endpoint).
pub(super) async fn build(options: &S3Options) -> Client {
    let timeouts = TimeoutConfig::builder().connect_timeout(options.connect_timeout).read_timeout(options.read_timeout).build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(region_of(options))
        .timeout_config(timeouts)
        // The store itself tries again, with bodies that broke off included.
        .retry_config(RetryConfig::disabled())
        // Every put carries a checksum of ours, and every block is verified with a hash of ours.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(files) = profile_files(options) {
        loader = loader.profile_files(files);
    }
    // What was named counts more than what happens to be in the environment.
    if options.profile.is_some() || options.credentials_file.is_some() {
        let mut provider = ProfileFileCredentialsProvider::builder();
        if let Some(profile) = &options.profile {
            provider = provider.profile_name(profile);
        }
        if let Some(files) = profile_files(options) {
            provider = provider.profile_files(files);
        }
        loader = loader.credentials_provider(provider.build());
    }
    let config = loader.load().await;
    let is_path_style = options.path_style.unwrap_or(options.endpoint.is_some());
    Client::from_conf(Builder::from(&config).force_path_style(is_path_style).build())
}

fn region_of(options: &S3Options) -> RegionProviderChain {
    let named = RegionProviderChain::first_try(options.region.clone().map(Region::new));
    if options.profile.is_none() && options.endpoint.is_none() {
        return named.or_default_provider().or_else(Region::new(ANY_REGION));
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    named.or_else(profile.build()).or_else(EnvironmentVariableRegionProvider::new()).or_else(Region::new(ANY_REGION))
}

fn profile_files(options: &S3Options) -> Option<ProfileFiles> {
    let file = options.credentials_file.as_ref()?;
    let files = ProfileFiles::builder().include_default_config_file(true);
    Some(files.with_file(ProfileFileKind::Credentials, file).build())
}
