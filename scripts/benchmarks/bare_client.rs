//! What the S3 client library alone reaches: reads objects in ranges, with some connections, and throws the bytes away; or puts
//! objects.
//!
//! ```text
//! bare_client ENDPOINT BUCKET PREFIX sequential RANGE_BYTES CONNECTIONS
//! bare_client ENDPOINT BUCKET PREFIX random RANGE_BYTES REQUESTS
//! bare_client ENDPOINT BUCKET PREFIX put OBJECT_BYTES OBJECTS
//! ```
//!
//! `sequential` reads all objects below the prefix, in the order of their keys, as a mount reads the packs of a file;
//! `random` reads ranges at random places, one after the other. `put` puts objects as the product puts packs: whole, with a
//! checksum, some at a time; it prints `ready` and begins at a line on its standard input, so that several begin together, and
//! each object is made before. One line of JSON says bytes, seconds, and percentiles of a
//! request's time. Credentials come from the environment. The client has the options of the product's own
//! (`src/object/s3/client.rs`), so that the difference to a mount is the mount.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use bytes::Bytes;

/// As many as the product puts at once by default (`uploads`).
const PUTS_AT_ONCE: usize = 4;
/// Objects that are made; they are put again and again, since a store does not look whether it has their bytes.
const BODIES: usize = 4;

/// A stretch of an object.
#[derive(Debug, Clone)]
struct Piece {
    key: Arc<str>,
    start: u64,
    end: u64,
}

async fn client(endpoint: &str) -> Client {
    let timeouts = TimeoutConfig::builder().connect_timeout(Duration::from_secs(5)).read_timeout(Duration::from_secs(30)).build();
    let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .endpoint_url(endpoint)
        .load()
        .await;
    Client::from_conf(Builder::from(&config).force_path_style(true).build())
}

/// Keys and sizes below the prefix, in order.
async fn objects(client: &Client, bucket: &str, prefix: &str) -> anyhow::Result<Vec<(Arc<str>, u64)>> {
    let mut found = Vec::new();
    let mut pages = client.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
    while let Some(page) = pages.next().await {
        for object in page?.contents.unwrap_or_default() {
            let size = u64::try_from(object.size.unwrap_or_default())?;
            found.push((Arc::from(object.key.context("an object without a key")?), size));
        }
    }
    found.sort();
    if found.is_empty() {
        bail!("nothing is below {prefix}");
    }
    Ok(found)
}

fn all_pieces(objects: &[(Arc<str>, u64)], range_bytes: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (key, size) in objects {
        let starts = (0..*size).step_by(usize::try_from(range_bytes).unwrap_or(usize::MAX));
        pieces.extend(starts.map(|start| Piece { key: key.clone(), start, end: size.min(&(start + range_bytes)).to_owned() }));
    }
    pieces
}

/// Places that look random and are the same in each run (Knuth's multiplicative generator).
fn random_pieces(objects: &[(Arc<str>, u64)], range_bytes: u64, count: usize) -> anyhow::Result<Vec<Piece>> {
    let long: Vec<_> = objects.iter().filter(|(_, size)| *size >= range_bytes).collect();
    if long.is_empty() {
        bail!("no object has {range_bytes} bytes");
    }
    let mut state = 1u64;
    let mut next = move |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut piece = || {
        let (key, size) = long[next(long.len() as u64) as usize];
        let start = next(size - range_bytes + 1);
        Piece { key: key.clone(), start, end: start + range_bytes }
    };
    Ok((0..count).map(|_| piece()).collect())
}

/// Reads a piece; how long it took.
async fn read(client: &Client, bucket: &str, piece: &Piece) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let range = format!("bytes={}-{}", piece.start, piece.end - 1);
    let answer = client.get_object().bucket(bucket).key(&*piece.key).range(range).send().await?;
    let (mut body, mut length) = (answer.body, 0);
    while let Some(part) = body.next().await {
        length += part?.len() as u64;
    }
    if length != piece.end - piece.start {
        bail!("{} bytes instead of {}", length, piece.end - piece.start);
    }
    Ok(began.elapsed())
}

async fn read_all(client: &Client, bucket: &str, pieces: Vec<Piece>, connections: usize) -> anyhow::Result<Vec<Duration>> {
    let (pieces, next) = (Arc::new(pieces), Arc::new(AtomicUsize::new(0)));
    let mut readers = Vec::new();
    for _ in 0..connections {
        let (client, bucket, pieces, next) = (client.clone(), bucket.to_owned(), pieces.clone(), next.clone());
        readers.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                times.push(read(&client, &bucket, piece).await?);
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for reader in readers {
        times.extend(reader.await??);
    }
    Ok(times)
}

/// Nothing that compresses, and its checksum.
fn body(length: usize) -> anyhow::Result<(Bytes, String)> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes)?;
    let checksum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    Ok((bytes.into(), base64::engine::general_purpose::STANDARD.encode(checksum)))
}

/// Puts objects, some at a time; how long each took, and all.
async fn put_all(
    client: &Client,
    bucket: &str,
    prefix: &str,
    length: usize,
    count: usize,
) -> anyhow::Result<(Vec<Duration>, f64)> {
    let bodies = Arc::new((0..BODIES.min(count)).map(|_| body(length)).collect::<anyhow::Result<Vec<_>>>()?);
    writeln!(std::io::stdout(), "ready")?;
    std::io::stdin().read_line(&mut String::new())?;
    let (began, next) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut writers = Vec::new();
    for _ in 0..PUTS_AT_ONCE {
        let (client, bucket, prefix) = (client.clone(), bucket.to_owned(), prefix.to_owned());
        let (bodies, next) = (bodies.clone(), next.clone());
        writers.push(tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(times);
                }
                let (body, checksum) = &bodies[number % bodies.len()];
                let began = Instant::now();
                let request = client.put_object().bucket(&bucket).key(format!("{prefix}{number}")).checksum_sha256(checksum);
                request.body(ByteStream::from(body.clone())).send().await?;
                times.push(began.elapsed());
            }
        }));
    }
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await??);
    }
    Ok((times, began.elapsed().as_secs_f64()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, bucket, prefix, mode, range_bytes, count] = arguments.as_slice() else {
        bail!("usage: bare_client ENDPOINT BUCKET PREFIX sequential|random|put BYTES CONNECTIONS|REQUESTS|OBJECTS");
    };
    let (range_bytes, count): (u64, usize) = (range_bytes.parse()?, count.parse()?);
    if range_bytes == 0 || count == 0 {
        bail!("nothing is asked for");
    }
    let client = client(endpoint).await;
    let (bytes, mut times, seconds) = if mode == "put" {
        let (times, seconds) = put_all(&client, bucket, prefix, usize::try_from(range_bytes)?, count).await?;
        (range_bytes * count as u64, times, seconds)
    } else {
        let objects = objects(&client, bucket, prefix).await?;
        let (pieces, connections) = match mode.as_str() {
            "sequential" => (all_pieces(&objects, range_bytes), count),
            "random" => (random_pieces(&objects, range_bytes, count)?, 1),
            _ => bail!("{mode}: sequential, random or put"),
        };
        let bytes: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        let began = Instant::now();
        let times = read_all(&client, bucket, pieces, connections).await?;
        (bytes, times, began.elapsed().as_secs_f64())
    };
    times.sort();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let (middle, high) = (percentile(50), percentile(99));
    writeln!(
        std::io::stdout(),
        "{{\"bytes\": {bytes}, \"seconds\": {seconds:.6}, \"requests\": {}, \"p50_us\": {middle:.1}, \"p99_us\": {high:.1}}}",
        times.len()
    )?;
    Ok(())
}
