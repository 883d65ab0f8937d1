//! Runs `slt/*.slt`: SQL, what it must answer, and for which tenant.
//!
//! A file is blocks between blank lines. `# ...` is a comment, `tenant NAME` says who asks from here on, anything
//! else is a statement, `----`, and the answer: one line a row with ` | ` between the values, or `error: ...`.
//! After a wanted change, `VA_SLT_UPDATE=1 cargo test --workspace --test sql_statements` rewrites the answers; read the difference.

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use va_catalog::{TenantId, TenantScope};

use crate::world::{World, scope};

#[tokio::test]
async fn statements_answer_as_written() {
    let world = World::new().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql_statements/slt");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "slt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {}", folder.display());
    let mut wrong = Vec::new();
    for file in files {
        let expected = std::fs::read_to_string(&file).unwrap();
        let actual = answered(&world, &expected).await;
        if expected == actual {
            continue;
        }
        if std::env::var_os("VA_SLT_UPDATE").is_some() {
            std::fs::write(&file, actual).unwrap();
        } else {
            for (expected, actual) in expected.split("\n\n").zip(actual.split("\n\n")) {
                if expected != actual {
                    let name = file.file_name().unwrap_or_default().display();
                    wrong.push(format!("{name}: expected\n{expected}\nbut got\n{actual}\n"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The same blocks with the answers of today.
async fn answered(world: &World, file: &str) -> String {
    let mut tenant = scope(TenantId::default_tenant());
    let mut blocks = Vec::new();
    for block in file.trim_end().split("\n\n") {
        let statement = block.split("\n----").next().unwrap_or_default();
        let sql: Vec<&str> = statement
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        let sql = sql.join("\n");
        if let Some(name) = sql.strip_prefix("tenant ") {
            tenant = scope(TenantId::new(name).unwrap());
        }
        if sql.is_empty() || sql.starts_with("tenant ") {
            blocks.push(block.to_owned());
        } else {
            let answer = answer(world, &tenant, &sql).await;
            let end = if answer.is_empty() { "" } else { "\n" };
            blocks.push(format!("{statement}\n----{end}{answer}"));
        }
    }
    blocks.join("\n\n") + "\n"
}

async fn answer(world: &World, tenant: &TenantScope, sql: &str) -> String {
    let rows = match world.engine.query(tenant, sql).await {
        Ok((_, rows)) => rows.try_collect::<Vec<RecordBatch>>().await,
        Err(error) => return format!("error: {error}"),
    };
    match rows {
        Ok(batches) => batches
            .iter()
            .flat_map(lines)
            .collect::<Vec<_>>()
            .join("\n"),
        Err(error) => format!("error: {}", va_sql::SqlError::from(error)),
    }
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            let values: Vec<String> = columns.iter().map(|c| c.value(row).to_string()).collect();
            // Plans have several lines in one value; blank ones would end the block.
            let line = values.join(" | ");
            let line: Vec<&str> = line
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            line.join("\n")
        })
        .collect()
}
