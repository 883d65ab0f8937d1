//! The command line: `va --help`. Exit code 0, 1 (failed) or 2 (wrong usage); errors on stderr.

mod ask;
mod client;
mod dlq;
mod eval;
mod identity;
mod index;
mod model;
pub mod pipeline;
mod resources;
mod search;
mod sql;
mod table;
mod top;
mod up;
mod versions;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use va_catalog::settings::Settings;

pub use client::{Failure, Outcome};
pub use up::{Booted, boot};

use crate::platform::Role;
use crate::traces::Traces;
use client::{Client, Target};

/// VoiceAssistant: documents, search and pipelines in one process.
#[derive(Parser)]
#[command(name = "va", version, about, arg_required_else_help = true)]
struct Cli {
    /// Data directory.
    #[arg(long, global = true, env = "VA_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Configuration file; `va.yaml` in the current directory when it is there.
    #[arg(long, global = true, env = "VA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Talk to this server instead of the one that holds the data directory.
    #[arg(long, global = true, env = "VA_SERVER", value_name = "URL")]
    server: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the whole platform up in this process.
    #[command(after_help = "Example: va up --data ./va-data --listen 127.0.0.1:8080")]
    Up {
        /// Address of the HTTP API.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Address of the PostgreSQL wire.
        #[arg(long)]
        pg_listen: Option<SocketAddr>,
    },
    /// Run pipelines in this process; any number of workers share the work.
    ///
    /// Needs stores that all processes reach: `log.brokers`, `catalog.url`, `objects.url` in va.yaml. What a worker keeps
    /// on its disk is a cache.
    #[command(
        after_help = "Example: va worker   (once more for each further worker, here or on another machine)"
    )]
    Worker {
        /// Address of `/healthz`, `/readyz` and `/metrics`; port 0 takes a free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Serve the APIs in this process, and leave the pipelines to workers.
    ///
    /// Needs stores that all processes reach, like `va worker`.
    #[command(after_help = "Example: va serve --listen 0.0.0.0:8080")]
    Serve {
        /// Address of the HTTP API.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Address of the PostgreSQL wire.
        #[arg(long)]
        pg_listen: Option<SocketAddr>,
    },
    Index(index::IndexArgs),
    Search(search::SearchArgs),
    Ask(ask::AskArgs),
    Chat(ask::ChatArgs),
    Eval(eval::EvalArgs),
    Sql(sql::SqlArgs),
    /// List, show, create and delete collections.
    #[command(subcommand)]
    Collection(resources::CollectionCommand),
    /// List, show and delete documents.
    #[command(subcommand)]
    Document(resources::DocumentCommand),
    /// Validate, draw, test, run and watch pipelines.
    #[command(subcommand)]
    Pipeline(pipeline::PipelineCommand),
    /// List, show and retry the rows that a pipeline could not process.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// List, create, fill and read topics of the log.
    #[command(subcommand)]
    Topic(resources::TopicCommand),
    /// List, make, invite and remove users.
    #[command(subcommand)]
    User(identity::UserCommand),
    /// List and make tenants.
    #[command(subcommand)]
    Tenant(identity::TenantCommand),
    /// List, make and revoke API keys.
    #[command(subcommand)]
    Key(identity::KeyCommand),
    /// List, fetch and check local models.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Parse documents for the process that started this one.
    #[command(hide = true)]
    ParseWorker {
        /// Most memory to allocate, in bytes.
        #[arg(long)]
        memory_bytes_max: u64,
    },
    /// What is configured, reachable, lagging, broken.
    Doctor {
        #[arg(long)]
        json: bool,
    },
}

/// Ends quietly when the reader of our output has gone (`va search ... | head`), where `println!` panics.
fn end_with_the_reader() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") {
            std::process::exit(0);
        }
        default(panic);
    }));
}

/// Runs the command of the process.
pub fn main() -> ExitCode {
    end_with_the_reader();
    let cli = Cli::parse();
    if let Command::ParseWorker { memory_bytes_max } = cli.command {
        return match va_parse_worker::run_worker(memory_bytes_max) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(1)
            }
        };
    }
    va_connectors::tls::install();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the async runtime: {error}");
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(run(cli));
    // A blocking call that outlives its command (a fetch that nobody waits for) must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("error: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Serves, and sends the last traces behind it.
async fn traced(serving: impl Future<Output = Outcome<()>>, traces: Option<Traces>) -> Outcome<()> {
    let outcome = serving.await;
    if let Some(traces) = traces {
        traces.close().await;
    }
    outcome
}

async fn run(cli: Cli) -> Outcome<()> {
    let file = cli
        .config
        .or_else(|| Some(PathBuf::from("va.yaml")).filter(|file| file.is_file()));
    // What is no text makes no sense as a setting, and the error says of which variable.
    let environment = std::env::vars_os().map(|(name, value)| {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        (text(name), text(value))
    });
    let mut settings = Settings::load(file.as_deref(), environment)
        .map_err(|error| Failure::usage(error.to_string()))?;
    if let Some(data) = cli.data {
        settings.data = data;
    }
    // Other commands say what went wrong themselves; `RUST_LOG` shows more.
    let serves = matches!(
        cli.command,
        Command::Up { .. } | Command::Worker { .. } | Command::Serve { .. }
    );
    let traces = if serves {
        Traces::start(&settings.telemetry).map_err(Failure::usage)?
    } else {
        None
    };
    if serves || std::env::var_os("RUST_LOG").is_some() {
        crate::telemetry::init_logs(&settings.telemetry, traces.as_ref());
    }
    match &cli.command {
        Command::Up { listen, pg_listen } => {
            settings.listen = listen.unwrap_or(settings.listen);
            settings.pg_listen = pg_listen.unwrap_or(settings.pg_listen);
            return traced(up::up(settings, Role::Up), traces).await;
        }
        Command::Serve { listen, pg_listen } => {
            settings.listen = listen.unwrap_or(settings.listen);
            settings.pg_listen = pg_listen.unwrap_or(settings.pg_listen);
            return traced(up::up(settings, Role::Serve), traces).await;
        }
        Command::Worker { listen } => {
            settings.listen = *listen;
            return traced(up::worker(settings), traces).await;
        }
        Command::Model(command) => {
            let command = tokio::task::block_in_place(|| model::model(command, &settings));
            return command;
        }
        Command::Pipeline(command) if !command.needs_server() => {
            return pipeline::local(command, &settings).await;
        }
        _ => {}
    }
    let token = std::env::var("VA_TOKEN").ok();
    let client = Client::connect(Target {
        settings,
        server: cli.server,
        token,
    })
    .await?;
    let result = match &cli.command {
        Command::Index(args) => index::index(&client, args).await,
        Command::Search(args) => search::search(&client, args).await,
        Command::Ask(args) => ask::ask(&client, args).await,
        Command::Chat(args) => ask::chat(&client, args).await,
        Command::Eval(args) => eval::eval(&client, args).await,
        Command::Sql(args) => sql::sql(&client, args).await,
        Command::Collection(command) => resources::collection(&client, command).await,
        Command::Document(command) => resources::document(&client, command).await,
        Command::Pipeline(command) => pipeline::remote(&client, command).await,
        Command::Dlq(command) => dlq::dlq(&client, command).await,
        Command::Topic(command) => resources::topic(&client, command).await,
        Command::User(command) => identity::user(&client, command).await,
        Command::Tenant(command) => identity::tenant(&client, command).await,
        Command::Key(command) => identity::key(&client, command).await,
        Command::Doctor { json } => resources::doctor(&client, *json).await,
        Command::Up { .. }
        | Command::Worker { .. }
        | Command::Serve { .. }
        | Command::Model(_)
        | Command::ParseWorker { .. } => Ok(()),
    };
    client.close().await;
    result
}
