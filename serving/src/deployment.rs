//! Which of the users' pipelines run in this process: what the catalog wishes, against what runs.
//!
//! A pipeline is deployed by writing it into the catalog. Every process that runs pipelines follows: at once where the
//! request came in, within [`FOLLOW_INTERVAL`] elsewhere. All of them run each pipeline, as members of one consumer group,
//! so the log shares its partitions among them, and a process that follows a moment later joins a moment later. A
//! definition that changes is restarted process by process: while old and new run side by side each row still belongs to
//! one of them, and its commit is either's, never both's.
//!
//! The built-in pipelines run wherever pipelines do; they are not in the catalog.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use va_catalog::store::{CatalogError, DesiredState, Page, Pipeline};
use va_catalog::{PipelineName, Version};

use crate::platform::Platform;

/// How soon a process hears of what another one deployed.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// Pipelines of one page of the catalog.
const PAGE: u32 = 500;

/// One wish for a pipeline: another definition and `va pipeline run` are new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Revision {
    version: Version,
    updated_at: i64,
}

impl Revision {
    fn of(pipeline: &Pipeline) -> Self {
        Self {
            version: pipeline.version,
            updated_at: pipeline.updated_at,
        }
    }
}

/// What was followed so far.
#[derive(Default)]
pub struct Deployment {
    revisions: Mutex<HashMap<PipelineName, Revision>>,
    /// Why a pipeline that should run does not.
    problems: Mutex<HashMap<PipelineName, String>>,
    /// One at a time: each begins with a look at the catalog.
    following: tokio::sync::Mutex<()>,
}

/// What has to be done to follow.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Stop(PipelineName),
    /// Start, after a stop when it runs.
    Start(Pipeline),
}

/// What brings `running` to what is `wished`.
fn steps(wished: Vec<Pipeline>, running: &HashMap<PipelineName, Revision>) -> Vec<Step> {
    let wished: Vec<Pipeline> = wished
        .into_iter()
        .filter(|pipeline| pipeline.desired_state == DesiredState::Running)
        .collect();
    let mut steps: Vec<Step> = running
        .keys()
        .filter(|name| !wished.iter().any(|pipeline| pipeline.name == **name))
        .map(|name| Step::Stop(name.clone()))
        .collect();
    steps.extend(
        wished
            .into_iter()
            .filter(|pipeline| running.get(&pipeline.name) != Some(&Revision::of(pipeline)))
            .map(Step::Start),
    );
    steps
}

impl Deployment {
    /// Why the pipeline, which should run here, does not.
    pub fn problem(&self, name: &PipelineName) -> Option<String> {
        lock(&self.problems).get(name).cloned()
    }
}

/// Starts, restarts and stops pipelines as the catalog wishes. A pipeline that cannot be started hinders no other; its
/// status says why. Does nothing where no pipelines run.
pub async fn follow(platform: &Platform) -> Result<(), CatalogError> {
    if !platform.role.runs_pipelines() {
        return Ok(());
    }
    let deployment = &platform.deployment;
    let _one = deployment.following.lock().await;
    let running = lock(&deployment.revisions).clone();
    for step in steps(wished(platform).await?, &running) {
        match step {
            Step::Stop(name) => {
                // It may have stopped by itself.
                let _ = platform.runtime.stop(&name).await;
                lock(&deployment.revisions).remove(&name);
                lock(&deployment.problems).remove(&name);
            }
            Step::Start(pipeline) => start(platform, &pipeline).await?,
        }
    }
    Ok(())
}

async fn start(platform: &Platform, pipeline: &Pipeline) -> Result<(), CatalogError> {
    let (name, deployment) = (&pipeline.name, &platform.deployment);
    if platform.runtime.plan(name).is_some() {
        let _ = platform.runtime.stop(name).await;
    }
    let names = platform.names().await?;
    let loaded = va_pipelines::load(name.as_str(), &pipeline.definition, names.as_ref());
    let (problem, followed) = match loaded {
        Ok(loaded) => match platform.run(loaded.plan).await {
            Ok(()) => (None, true),
            // A server that does not answer: the next look tries again.
            Err(error) => (Some(error), false),
        },
        // It stays wrong until it is changed.
        Err(diagnostics) => (Some(diagnostics.to_string()), true),
    };
    if followed {
        lock(&deployment.revisions).insert(name.clone(), Revision::of(pipeline));
    }
    match problem {
        Some(problem) => {
            let known = lock(&deployment.problems).insert(name.clone(), problem.clone());
            if known.as_ref() != Some(&problem) {
                tracing::error!(pipeline = %name, error = problem, "a pipeline did not start");
            }
        }
        None => {
            lock(&deployment.problems).remove(name);
        }
    }
    Ok(())
}

/// Every pipeline of the catalog.
pub(crate) async fn wished(platform: &Platform) -> Result<Vec<Pipeline>, CatalogError> {
    let mut pipelines = Vec::new();
    let mut page = Page::first(PAGE);
    loop {
        let listing = platform.catalog.pipelines(&platform.tenant, &page).await?;
        pipelines.extend(listing.items);
        match listing.next {
            Some(cursor) => page.cursor = Some(cursor),
            None => return Ok(pipelines),
        }
    }
}

/// Follows what other processes deploy, until the platform stops.
pub async fn run(platform: Arc<Platform>) {
    let mut ticks = tokio::time::interval(FOLLOW_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.stopping().cancelled() => return,
        }
        if let Err(error) = follow(&platform).await {
            tracing::warn!(%error, "the catalog does not say which pipelines should run; it is asked again");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(
        name: &str,
        version: u32,
        updated_at: i64,
        desired_state: DesiredState,
    ) -> Pipeline {
        Pipeline {
            name: PipelineName::new(name).expect("a name"),
            version: Version(version),
            definition: String::new(),
            source_file: None,
            desired_state,
            created_at: 0,
            updated_at,
        }
    }

    #[test]
    fn what_runs_becomes_what_is_wished() {
        use DesiredState::{Running, Stopped};
        let running: HashMap<_, _> = ["same", "new_definition", "run_again", "stopped", "deleted"]
            .map(|name| {
                let one = pipeline(name, 1, 5, Running);
                (one.name.clone(), Revision::of(&one))
            })
            .into();
        let wished = vec![
            pipeline("same", 1, 5, Running),
            pipeline("new_definition", 2, 6, Running),
            pipeline("run_again", 1, 7, Running),
            pipeline("stopped", 1, 8, Stopped),
            pipeline("added", 1, 9, Running),
            pipeline("never", 1, 9, Stopped),
        ];
        let mut steps: Vec<String> = steps(wished, &running)
            .iter()
            .map(|step| match step {
                Step::Stop(name) => format!("stop {name}"),
                Step::Start(pipeline) => format!("start {} {}", pipeline.name, pipeline.version),
            })
            .collect();
        steps.sort();
        assert_eq!(
            steps,
            [
                "start added 1",
                "start new_definition 2",
                "start run_again 1",
                "stop deleted",
                "stop stopped"
            ]
        );
    }
}
