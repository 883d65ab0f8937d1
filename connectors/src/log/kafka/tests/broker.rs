//! One broker for the whole test binary. It ends with the process: a guard process waits for our end of a pipe to close,
//! which happens however we end.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// What the guard does: the script's `stop` once its input ends.
const GUARD: &str = r#"cat >/dev/null; exec "$1" stop "$2""#;

struct Broker {
    bootstrap: String,
    /// Where it listens for a proxy, and where it tells the proxy's clients to come to.
    proxied: (u16, u16),
    /// Its input stays open until this process ends.
    _guard: Child,
}

/// Address of the broker, started with the first call. `None`, and said why, when there can be none.
pub(super) fn bootstrap() -> Option<String> {
    // A child of a test is told where its parent's broker is.
    if let Ok(brokers) = std::env::var(super::faults::BROKERS) {
        return Some(brokers);
    }
    broker().map(|broker| broker.bootstrap.clone())
}

/// The broker's door for a proxy.
pub(super) fn proxied() -> Option<(u16, u16)> {
    broker().map(|broker| broker.proxied)
}

fn broker() -> Option<&'static Broker> {
    static BROKER: OnceLock<Result<Broker, String>> = OnceLock::new();
    match BROKER.get_or_init(start) {
        Ok(broker) => Some(broker),
        Err(reason) => {
            println!("SKIPPED: {reason}");
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "with CI=true nothing may be skipped: {reason}"
            );
            None
        }
    }
}

fn start() -> Result<Broker, String> {
    for (tool, package) in [("java", "openjdk-17-jre-headless"), ("mvn", "maven")] {
        let found = Command::new(tool)
            .arg("-version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            return Err(format!(
                "no {tool} to run Kafka with (Debian package {package})"
            ));
        }
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev/kafka.sh");
    let output = Command::new(&script)
        .arg("start")
        .output()
        .map_err(|e| format!("run kafka.sh: {e}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |name: &str| {
        printed
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    let proxied = line("proxied ").and_then(|ports| {
        let (listens, told) = ports.split_once(' ')?;
        Some((listens.parse().ok()?, told.parse().ok()?))
    });
    let (Some(bootstrap), Some(folder), Some(proxied)) =
        (line("bootstrap "), line("folder "), proxied)
    else {
        // A broken script is a failure and not a reason to skip.
        panic!(
            "kafka.sh start failed: {printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let guard = Command::new("setsid")
        .args(["sh", "-c", GUARD, "guard"])
        .arg(&script)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the guard");
    Ok(Broker {
        bootstrap,
        proxied,
        _guard: guard,
    })
}
