//! `va up`, `va serve`, `va worker`: what each role runs in one process, until Ctrl-C or SIGTERM.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use va_catalog::settings::Settings;
use va_catalog::{CollectionName, TenantScope, Viewer};
use va_sql::{PostgresOptions, Search, SearchRow, SqlEngine, SqlServices};

use super::client::{Failure, Outcome};
use crate::http::{App, serve};
use crate::platform::{OpenError, Platform, Role};
use crate::retrieval::{Mode, SearchRequest, search};
use crate::telemetry;

/// How long open connections may take to end.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// A running platform with its listeners.
pub struct Booted {
    pub platform: Arc<Platform>,
    pub address: SocketAddr,
    pub pg_address: Option<SocketAddr>,
    listeners: Vec<JoinHandle<()>>,
}

impl Booted {
    /// Stops listeners, pipelines and stores, in that order.
    ///
    /// Connections that do not end by themselves get [`STOP_WAIT`].
    pub async fn stop(self) {
        self.platform.stop().await;
        for listener in self.listeners {
            let abort = listener.abort_handle();
            if tokio::time::timeout(STOP_WAIT, listener).await.is_err() {
                abort.abort();
            }
        }
    }
}

/// Opens the platform, starts pipelines and listeners, and, when it serves the API, notes the address in `server.json`.
pub async fn boot(
    settings: Settings,
    role: Role,
    pg_listen: Option<SocketAddr>,
) -> Result<Booted, OpenError> {
    let part = |part: &'static str| {
        move |error: std::io::Error| OpenError::Part {
            part,
            message: error.to_string(),
        }
    };
    // First, so that what is counted during the start is counted.
    let metrics = telemetry::init_metrics();
    let listen = settings.listen;
    let platform = Platform::open(settings, role).await?;
    let bind = |address: SocketAddr| async move {
        TcpListener::bind(address).await.map_err(|error| {
            std::io::Error::other(format!(
                "listen on {address}: {error}; choose another address with --listen or --pg-listen"
            ))
        })
    };
    let listener = bind(listen).await.map_err(part("HTTP API"))?;
    let address = listener.local_addr().map_err(part("HTTP API"))?;
    platform.start().await?;

    let sql = SqlEngine::new(SqlServices {
        catalog: platform.catalog.clone(),
        log: platform.log.clone(),
        vectors: platform.indexes.vectors.clone(),
        search: Arc::new(PlatformSearch(platform.clone())),
    });
    let sql = Arc::new(sql.map_err(|error| OpenError::Part {
        part: "SQL engine",
        message: error.to_string(),
    })?);
    let app = App {
        platform: platform.clone(),
        sql: sql.clone(),
        metrics,
    };
    let mut listeners = vec![tokio::spawn(async move {
        serve(app, listener).await;
    })];
    let mut pg_address = None;
    if let Some(pg_listen) = pg_listen {
        let listener = bind(pg_listen).await.map_err(part("PostgreSQL wire"))?;
        pg_address = Some(listener.local_addr().map_err(part("PostgreSQL wire"))?);
        let keys = Arc::new(platform.catalog.clone());
        let stopping = platform.stopping().clone();
        listeners.push(tokio::spawn(async move {
            let options = PostgresOptions::default();
            if let Err(error) = va_sql::serve_postgres(sql, listener, keys, options, stopping).await
            {
                tracing::error!(%error, "the PostgreSQL wire ended");
            }
        }));
    }
    if role != Role::Worker {
        let note = json!({"address": format!("http://{address}"), "pid": std::process::id()});
        let path = platform.data.join("server.json");
        std::fs::write(&path, note.to_string()).map_err(|source| OpenError::Io { path, source })?;
    }
    Ok(Booted {
        platform,
        address,
        pg_address,
        listeners,
    })
}

/// `hybrid_search` for SQL.
struct PlatformSearch(Arc<Platform>);

#[async_trait]
impl Search for PlatformSearch {
    async fn hybrid(
        &self,
        tenant: &TenantScope,
        viewer: &Viewer,
        collection: &CollectionName,
        query: &str,
        k: usize,
    ) -> Result<Vec<SearchRow>, String> {
        let request = SearchRequest {
            query: query.to_owned(),
            collection: collection.clone(),
            k: Some(k as u32),
            mode: Mode::Hybrid,
            filter: va_catalog::Filter::default(),
            explain: false,
        };
        let reply = search(&self.0, tenant, viewer, &request)
            .await
            .map_err(|error| error.to_string())?;
        Ok(reply
            .hits
            .into_iter()
            .map(|hit| SearchRow {
                rank: hit.rank,
                score: hit.score,
                document_id: hit.document.id.to_string(),
                name: hit.document.name,
                uri: hit.document.uri,
                title: hit.document.title,
                version: hit.document.version.0,
                chunk_id: hit.chunk.id.to_string(),
                title_path: hit.chunk.title_path,
                page: hit.chunk.page,
                start: hit.chunk.start,
                end: hit.chunk.end,
                text: hit.chunk.text,
                vector_rank: hit.retrievers.vector.map(|place| place.rank),
                keyword_rank: hit.retrievers.keyword.map(|place| place.rank),
            })
            .collect())
    }
}

/// The most workers of one machine that share a data directory.
const WORKERS_MAX: u32 = 256;

/// Runs pipelines until a signal, in the first folder below the data directory that no other worker has.
pub async fn worker(settings: Settings) -> Outcome<()> {
    for number in 1..=WORKERS_MAX {
        let mut settings = settings.clone();
        settings.data.push(format!("worker-{number}"));
        let booted = match boot(settings, Role::Worker, None).await {
            Err(OpenError::InUse { .. }) => continue,
            booted => booted?,
        };
        println!(
            "VoiceAssistant {} worker {number} is up.",
            env!("CARGO_PKG_VERSION")
        );
        println!("  pipelines       {}", names(&booted.platform));
        println!(
            "  health, metrics http://{}   (/readyz, /metrics)",
            booted.address
        );
        println!("  scratch         {}", booted.platform.data.display());
        println!("Stop with Ctrl-C.");
        wait_for_signal().await;
        eprintln!("Stopping: finishing the last checkpoint ...");
        booted.stop().await;
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{WORKERS_MAX} workers have their folders below `{}`; give more of them another one with --data",
        settings.data.display()
    )))
}

fn names(platform: &Platform) -> String {
    let names: Vec<_> = platform.runtime.names();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Serves the APIs until a signal, and runs pipelines where the role does.
pub async fn up(settings: Settings, role: Role) -> Outcome<()> {
    let pg_listen = settings.pg_listen;
    let booted = boot(settings, role, Some(pg_listen)).await?;
    if role == Role::Up {
        crate::folder::served::start(&booted.platform);
        println!("VoiceAssistant {} is up.", env!("CARGO_PKG_VERSION"));
    } else {
        if !booted.platform.settings.folders.is_empty() {
            tracing::warn!(
                "`folders` of the settings are kept by `va up` only; use `va index --watch`"
            );
        }
        println!(
            "VoiceAssistant {} serves; pipelines run in workers (va worker).",
            env!("CARGO_PKG_VERSION")
        );
    }
    println!(
        "  HTTP API        http://{}   (description at /openapi.json, metrics at /metrics)",
        booted.address
    );
    if let Some(pg) = booted.pg_address {
        println!(
            "  PostgreSQL wire psql -h {} -p {} -U default   (password: the key)",
            pg.ip(),
            pg.port()
        );
    }
    println!("  data            {}", booted.platform.data.display());
    println!("  admin key       {}", booted.platform.admin_key.display());
    println!("Stop with Ctrl-C.");
    wait_for_signal().await;
    eprintln!("Stopping: finishing the last checkpoint ...");
    booted.stop().await;
    Ok(())
}

/// Returns on Ctrl-C or SIGTERM.
pub async fn wait_for_signal() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}
