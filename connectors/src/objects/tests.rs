//! The store of objects on a directory, in memory and on a real S3 server; only files are looked at as such.

use std::convert::Infallible;
use std::future::ready;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::*;

use crate::servers::{self, Server};

/// One kind of store, empty.
struct Place {
    objects: Objects,
    dir: Option<TempDir>,
}

impl Place {
    fn local() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            objects: Objects::local(dir.path()).unwrap(),
            dir: Some(dir),
        }
    }

    /// What is there, as paths; of a directory every file, of others every object.
    async fn names(&self) -> Vec<String> {
        if let Some(dir) = &self.dir {
            let relative = |path: PathBuf| {
                let path = path.strip_prefix(dir.path()).unwrap();
                path.display().to_string()
            };
            return files(dir.path()).into_iter().map(relative).collect();
        }
        let listed = self.objects.store.list(None);
        listed
            .map(|entry| entry.unwrap().location.to_string())
            .collect()
            .await
    }
}

impl From<Objects> for Place {
    fn from(objects: Objects) -> Self {
        Self { objects, dir: None }
    }
}

/// Every kind of store.
async fn places() -> Vec<Place> {
    let mut places = vec![
        Place::local(),
        Objects::new(Arc::new(InMemory::new())).into(),
    ];
    if let Some(server) = s3_server() {
        places.push(bucket(server).await.into());
    }
    places
}

/// The one S3 server of this test process; without one that is told.
fn s3_server() -> Option<&'static Server> {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    match SERVER.get_or_init(|| Server::start("s3.sh")) {
        Ok(server) => Some(server),
        Err(reason) => {
            servers::skip(reason);
            None
        }
    }
}

/// A prefix of its own in the server's bucket.
async fn bucket(server: &Server) -> Objects {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let (options, bucket) = options(server);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    Objects::open(&format!("s3://{bucket}/测试/{number}"), &options)
        .await
        .unwrap()
}

/// From `http://KEY:SECRET@HOST:PORT/BUCKET`.
fn options(server: &Server) -> (S3Options, String) {
    crate::tls::install();
    let url = server.url().strip_prefix("http://").unwrap();
    let (keys, place) = url.split_once('@').unwrap();
    let (key, secret) = keys.split_once(':').unwrap();
    let (host, bucket) = place.split_once('/').unwrap();
    let options = S3Options {
        endpoint: Some(format!("http://{host}")),
        access_key_id: Some(key.to_owned()),
        secret_access_key: Some(Secret::new(secret)),
        allow_http: true,
        retries_max: 1,
        ..S3Options::default()
    };
    (options, bucket.to_owned())
}

fn files(dir: &FilePath) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn pieces(total: usize, piece: usize) -> (Vec<u8>, impl Stream<Item = Result<Bytes, Infallible>>) {
    let whole: Vec<u8> = (0..total).map(|i| (i * 31 % 251) as u8).collect();
    let parts: Vec<_> = whole
        .chunks(piece)
        .map(|part| Ok(Bytes::copy_from_slice(part)))
        .collect();
    (whole, stream::iter(parts))
}

#[tokio::test]
async fn objects_come_back_by_their_hash() {
    for place in places().await {
        let objects = &place.objects;
        // Nothing, one part, exactly one part, more than two; and pieces that do not divide a part, or are larger.
        let sizes = [
            (0, 1),
            (1, 1),
            (100_000, 7_001),
            (PART_BYTES, 1 << 20),
            (11 << 20, 999_999),
            (12 << 20, 7 << 20),
        ];
        for (total, piece) in sizes {
            let (whole, stream) = pieces(total, piece);
            let stored = objects.put_stream(stream, total as u64).await.unwrap();
            assert_eq!(stored.size, total as u64);
            assert_eq!(stored.hash.as_str(), hex(Sha256::digest(&whole)));
            assert_eq!(objects.get(&stored.hash).await.unwrap(), whole);
            assert!(objects.exists(&stored.hash).await.unwrap());
            // The same again is the same object.
            let again = objects.put_bytes(whole.into()).await.unwrap();
            assert_eq!(again, stored);
        }
        let names = place.names().await;
        assert_eq!(names.len(), 6, "{names:?}");
        // SHA-256 of nothing, at the documented place.
        let empty = "e3/b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(names.iter().any(|name| name == empty), "{names:?}");
    }
}

#[tokio::test]
async fn many_at_once_are_as_many_one_by_one() {
    let contents: Vec<Bytes> = (0..100)
        .map(|n| Bytes::from(format!("content {}", n % 90)))
        .collect();
    for place in places().await {
        let objects = &place.objects;
        assert!(objects.put_all(Vec::new()).await.unwrap().is_empty());
        let one = objects.put_bytes(contents[3].clone()).await.unwrap();
        // Few, which a directory syncs one by one, then many, of which some are there.
        let few = objects.put_all(contents[2..5].to_vec()).await.unwrap();
        assert_eq!(few[1], one);
        let stored = objects.put_all(contents.clone()).await.unwrap();
        assert_eq!(stored[2..5], few);
        assert_eq!(stored[3], one);
        for (object, bytes) in stored.iter().zip(&contents) {
            // From memory where it was not read before, then as it is stored.
            for _ in 0..2 {
                assert_eq!(objects.get(&object.hash).await.unwrap(), bytes);
            }
        }
        // Ten of the contents came twice, and nothing is left in between.
        assert_eq!(place.names().await.len(), 90);
    }
}

#[tokio::test]
async fn too_much_is_refused_and_leaves_nothing() {
    for place in places().await {
        for total in [1_001, 12 << 20] {
            let (_, stream) = pieces(total, 100_000);
            let limit = total as u64 - 1;
            let error = place.objects.put_stream(stream, limit).await.unwrap_err();
            assert!(
                matches!(error, ObjectError::TooLarge { limit: l } if l == limit),
                "{error}"
            );
            assert!(error.to_string().contains(&limit.to_string()), "{error}");
        }
        assert_eq!(place.names().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_broken_upload_leaves_nothing() {
    for place in places().await {
        for start in ["half".into(), Bytes::from(vec![7; 11 << 20])] {
            let stream = stream::iter([Ok(start), Err("connection reset")]);
            let error = place
                .objects
                .put_stream(stream, u64::MAX)
                .await
                .unwrap_err();
            assert!(matches!(error, ObjectError::Upload(_)), "{error}");
        }
        assert_eq!(place.names().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_upload_that_is_abandoned_midway_leaves_nothing() {
    for place in places().await {
        let objects = &place.objects;
        // Two parts and a bit, then nothing more comes, and the caller goes away.
        let (_, start) = pieces(11 << 20, 1 << 20);
        let (arrived, mut waiting) = tokio::sync::mpsc::channel(1);
        let end = stream::once(async move {
            arrived.send(()).await.unwrap();
            std::future::pending().await
        });
        let stream: BoxStream<'_, Result<Bytes, Infallible>> = start.chain(end).boxed();
        tokio::select! {
            _ = objects.put_stream(stream, u64::MAX) => unreachable!("the stream does not end"),
            _ = waiting.recv() => {}
        }
        // A directory's file goes in the background.
        let seen = place.names().await;
        assert!(
            seen.iter().all(|name| name.starts_with(INCOMING)),
            "{seen:?}"
        );
        // The store is told with the next upload.
        let next = objects.put_bytes("next".into()).await.unwrap();
        assert!(objects.abandoned.0.lock().unwrap().is_empty());
        assert_eq!(objects.get(&next.hash).await.unwrap(), "next");
    }
}

#[tokio::test]
async fn two_writers_of_the_same_content_both_succeed() {
    let Some(server) = s3_server() else { return };
    // Two handles, as two processes have.
    let (options, bucket) = options(server);
    let url = format!("s3://{bucket}/two-writers");
    let one = Objects::open(&url, &options).await.unwrap();
    let two = Objects::open(&url, &options).await.unwrap();
    for total in [1_000, 11 << 20] {
        let put = async |objects: &Objects| {
            let (_, stream) = pieces(total, 900_000);
            objects.put_stream(stream, u64::MAX).await.unwrap()
        };
        let puts = futures::future::join_all([&one, &two, &one, &two].map(put));
        let stored = puts.await;
        assert!(stored.iter().all(|object| *object == stored[0]));
        let (whole, _) = pieces(total, 1);
        assert_eq!(two.get(&stored[0].hash).await.unwrap(), whole);
    }
    let left = Place::from(one).names().await;
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn missing_and_damaged_objects_are_named() {
    for place in places().await {
        let objects = &place.objects;
        let stored = objects.put_bytes("文档".into()).await.unwrap();
        assert_eq!(read(objects, &stored.hash).await.unwrap(), "文档");
        let path = path_of(&stored.hash);
        objects.store.put(&path, "tampered".into()).await.unwrap();
        let error = objects.get(&stored.hash).await.unwrap_err();
        assert!(matches!(error, ObjectError::Corrupt { .. }), "{error}");
        let error = read(objects, &stored.hash).await.unwrap_err();
        assert!(matches!(error, ObjectError::Corrupt { .. }), "{error}");

        objects.delete(&stored.hash).await.unwrap();
        objects.delete(&stored.hash).await.unwrap();
        assert!(!objects.exists(&stored.hash).await.unwrap());
        for error in [
            objects.get(&stored.hash).await.unwrap_err(),
            read(objects, &stored.hash).await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, ObjectError::NotFound(h) if *h == stored.hash),
                "{error}"
            );
        }
    }
}

/// The object, read piece by piece.
async fn read(objects: &Objects, hash: &ContentHash) -> Result<Bytes, ObjectError> {
    let pieces: Vec<Bytes> = objects.read(hash).await?.try_collect().await?;
    Ok(pieces.concat().into())
}

#[tokio::test]
async fn what_an_upload_relies_on_is_not_removed() {
    for place in places().await {
        let objects = Objects {
            young_for: Duration::ZERO,
            ..place.objects
        };
        let unused = || async { Ok::<_, ObjectError>(false) };
        let stored = objects.put_bytes("kept".into()).await.unwrap();
        let hash = stored.hash.clone();
        assert_eq!(
            objects
                .list(u8::from_str_radix(&hash.as_str()[..2], 16).unwrap())
                .await
                .unwrap(),
            std::slice::from_ref(&hash)
        );
        assert!(!objects.remove_unless_used(&hash, unused()).await.unwrap());
        let again = objects.put_bytes("kept".into()).await.unwrap();
        drop(stored);
        assert!(!objects.remove_unless_used(&hash, unused()).await.unwrap());
        drop(again);
        let used = async { Ok::<_, ObjectError>(true) };
        assert!(!objects.remove_unless_used(&hash, used).await.unwrap());
        // An upload of the same content that comes in the middle of the removal stores it anew.
        let racing = async {
            let put = objects.clone();
            let upload = tokio::spawn(async move { put.put_bytes("kept".into()).await });
            tokio::task::yield_now().await;
            Ok::<_, ObjectError>((false, upload))
        };
        let slot = std::cell::RefCell::new(None);
        let used = async {
            let (used, upload) = racing.await?;
            slot.replace(Some(upload));
            Ok::<_, ObjectError>(used)
        };
        assert!(objects.remove_unless_used(&hash, used).await.unwrap());
        let stored = slot.take().unwrap().await.unwrap().unwrap();
        assert_eq!(objects.get(&stored.hash).await.unwrap(), "kept");
    }
}

#[tokio::test]
async fn what_another_process_wrote_just_now_is_not_removed() {
    let Some(server) = s3_server() else { return };
    let objects = bucket(server).await;
    let hash = objects.put_bytes("theirs".into()).await.unwrap().hash;
    let unused = || ready(Ok::<_, ObjectError>(false));
    assert!(!objects.remove_unless_used(&hash, unused()).await.unwrap());
    let later = Objects {
        young_for: Duration::ZERO,
        ..objects.clone()
    };
    assert!(later.remove_unless_used(&hash, unused()).await.unwrap());
    assert!(!objects.exists(&hash).await.unwrap());
}

#[tokio::test]
async fn leftovers_of_a_killed_process_are_removed() {
    let place = Place::local();
    let objects = &place.objects;
    assert_eq!(objects.remove_unfinished().await.unwrap(), 0);
    let stored = objects.put_bytes("kept".into()).await.unwrap();
    let incoming = place.dir.as_ref().unwrap().path().join(INCOMING);
    std::fs::create_dir_all(&incoming).unwrap();
    for name in ["whole", "part#1"] {
        std::fs::write(incoming.join(name), "x").unwrap();
    }
    assert_eq!(objects.remove_unfinished().await.unwrap(), 2);
    assert_eq!(place.names().await.len(), 1);
    assert_eq!(objects.get(&stored.hash).await.unwrap(), "kept");

    // What is young in a bucket may be another process's.
    let objects = Objects::new(Arc::new(InMemory::new()));
    let incoming = Path::from_iter([INCOMING, "whole"]);
    objects.store.put(&incoming, "x".into()).await.unwrap();
    assert_eq!(objects.remove_unfinished().await.unwrap(), 0);
}

#[tokio::test]
async fn opening_says_what_is_wrong_and_shows_no_secret() {
    let Some(server) = s3_server() else { return };
    let (good, bucket) = options(server);
    let secret = good
        .secret_access_key
        .as_ref()
        .map(|secret| format!("{secret:?}"));
    assert_eq!(secret.as_deref(), Some("***"));
    let password = server.url().split(['@', ':']).nth(2).unwrap();
    let url = format!("s3://{bucket}");
    let objects = Objects::open(&url, &good).await.unwrap();
    assert!(!format!("{objects:?} {good:?}").contains(password));

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let with = |change: &dyn Fn(&mut S3Options)| {
        let mut options = good.clone();
        change(&mut options);
        options
    };
    let cases = [
        (
            "s3://no-such-bucket/x",
            good.clone(),
            "open `s3://no-such-bucket/x`: the bucket `no-such-bucket` does not exist",
        ),
        (
            &url,
            with(&|o| o.secret_access_key = Some(Secret::new("wrong"))),
            "is denied: check the keys",
        ),
        (
            &url,
            with(&|o| o.endpoint = Some(format!("http://127.0.0.1:{port}"))),
            "the store cannot be reached: check the endpoint",
        ),
        (
            &url,
            with(&|o| o.secret_access_key = None),
            "`access_key_id` and `secret_access_key` belong together",
        ),
        (
            &url,
            with(&|o| (o.access_key_id, o.secret_access_key) = (None, None)),
            "there are no keys for `http://127.0.0.1:",
        ),
        (
            &url,
            with(&|o| o.allow_http = false),
            "has no TLS: use https",
        ),
        (
            "s3://key:hidden@host/bucket",
            good.clone(),
            "is not s3://BUCKET/PREFIX",
        ),
        ("gs://bucket", good.clone(), "`gs` is not an object storage"),
    ];
    for (url, options, expected) in cases {
        let error = Objects::open(url, &options).await.unwrap_err().to_string();
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
        assert!(
            !error.contains(password) && !error.contains("hidden"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_store_that_goes_away_midway_leaves_no_half_object() {
    if s3_server().is_none() {
        return;
    }
    // A server of its own: the others go on with theirs.
    let mut server = Server::start("s3.sh").unwrap();
    let place = Place::from(bucket(&server).await);
    let (_, start) = pieces(6 << 20, 1 << 20);
    let (_, rest) = pieces(6 << 20, 1 << 20);
    let halt = stream::once(async {
        server.tell("halt");
        Ok(Bytes::new())
    });
    let stream: BoxStream<'_, Result<Bytes, Infallible>> = start.chain(halt).chain(rest).boxed();
    let error = place
        .objects
        .put_stream(stream, u64::MAX)
        .await
        .unwrap_err();
    assert!(matches!(error, ObjectError::Storage(_)), "{error}");
    server.tell("resume");
    assert_eq!(place.names().await, Vec::<String>::new());
    let stored = place.objects.put_bytes("again".into()).await.unwrap();
    assert_eq!(place.objects.get(&stored.hash).await.unwrap(), "again");
}
