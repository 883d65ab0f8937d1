//! `va sql`: one query, a file, or a shell with history and completion.

use std::path::PathBuf;

use clap::Args;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper, Highlighter, Hinter};
use serde_json::json;

use super::client::{Client, Failure, Outcome};
use super::table::{cell, print};

/// SQL over the catalog, chunks, topics and `hybrid_search`.
#[derive(Args)]
#[command(
    after_help = "Example: va sql \"SELECT name, score FROM hybrid_search('help', '冻结行', 5)\""
)]
pub struct SqlArgs {
    /// A query; without it (and without -f) a shell opens.
    pub query: Option<String>,
    /// Run the statements of a file, separated by `;` at the end of a line.
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

pub async fn sql(client: &Client, args: &SqlArgs) -> Outcome<()> {
    if let Some(query) = &args.query {
        return run(client, query, args.json).await;
    }
    if let Some(file) = &args.file {
        for statement in std::fs::read_to_string(file)?
            .split(";\n")
            .map(str::trim)
            .filter(|s| !s.is_empty())
        {
            run(client, statement.trim_end_matches(';'), args.json).await?;
        }
        return Ok(());
    }
    shell(client).await
}

async fn run(client: &Client, query: &str, json: bool) -> Outcome<()> {
    let reply = client.post("/api/v1/sql", &json!({"query": query})).await?;
    if json {
        println!("{reply}");
        return Ok(());
    }
    let header: Vec<&str> = reply["columns"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect();
    let rows: Vec<Vec<String>> = reply["rows"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| row.as_array().into_iter().flatten().map(cell).collect())
        .collect();
    print(&header, &rows);
    let plural = if rows.len() == 1 { "" } else { "s" };
    println!(
        "({} row{plural}, {:.1} ms)",
        rows.len(),
        reply["took_ms"].as_f64().unwrap_or_default()
    );
    Ok(())
}

async fn shell(client: &Client) -> Outcome<()> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(true)
        .build();
    let mut editor: Editor<Words, DefaultHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Words {
        words: words(client).await,
    }));
    let history = history_file();
    if let Some(history) = &history {
        // The first time there is none.
        let _ = editor.load_history(history);
    }
    println!("Statements end with `;`. \\q or Ctrl-D leaves.");
    loop {
        match editor.readline("va> ") {
            Ok(line) if ["\\q", "exit", "quit"].contains(&line.trim().trim_end_matches(';')) => {
                break;
            }
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                // At once, so that a session that is killed is remembered too. A shell without memory still works.
                if let Some(history) = &history {
                    let _ = editor.append_history(history);
                }
                let statement = line.trim().trim_end_matches(';');
                let done = tokio::select! {
                    done = run(client, statement, false) => done,
                    _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
                };
                if let Err(failure) = done {
                    eprintln!("error: {}", failure.message);
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// `$XDG_STATE_HOME/voiceassistant/sql_history`, or the same under `~/.local/state`; its folder is there. Only its owner
/// may read the file: statements hold what somebody looked for.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let dir = state.join("voiceassistant");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("sql_history"))
}

const KEYWORDS: &[&str] = &[
    "AND",
    "AS",
    "ASC",
    "AVG(",
    "BETWEEN",
    "CASE",
    "CAST(",
    "COUNT(*)",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "ELSE",
    "END",
    "EXPLAIN",
    "FROM",
    "GROUP BY",
    "HAVING",
    "ILIKE",
    "IN",
    "INNER JOIN",
    "IS NOT NULL",
    "IS NULL",
    "JOIN",
    "LEFT JOIN",
    "LIKE",
    "LIMIT",
    "MAX(",
    "MIN(",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER BY",
    "SELECT",
    "SHOW TABLES",
    "SUM(",
    "THEN",
    "UNION ALL",
    "USING",
    "WHEN",
    "WHERE",
    "WITH",
    "hybrid_search(",
];

/// Keywords, tables and columns, for completion.
async fn words(client: &Client) -> Vec<String> {
    let mut words: Vec<String> = KEYWORDS.iter().map(|word| (*word).to_owned()).collect();
    let query = "SELECT table_schema, table_name, column_name FROM information_schema.columns \
                 WHERE table_schema <> 'information_schema'";
    // Completion is a comfort; a shell without it still works.
    if let Ok(reply) = client.post("/api/v1/sql", &json!({"query": query})).await {
        for row in reply["rows"].as_array().into_iter().flatten() {
            let text = |at: usize| row[at].as_str().unwrap_or_default().to_owned();
            let plain = |name: &str| {
                name.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            };
            let quoted = |name: String| {
                if plain(&name) {
                    name
                } else {
                    format!("\"{name}\"")
                }
            };
            let table = quoted(text(1));
            words.push(if text(0) == "public" {
                table
            } else {
                format!("{}.{table}", text(0))
            });
            words.push(quoted(text(2)));
        }
    }
    words.sort();
    words.dedup();
    words
}

#[derive(Helper, Highlighter, Hinter)]
struct Words {
    words: Vec<String>,
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        // White space may be wide, more than one byte.
        let start = line[..at]
            .char_indices()
            .rfind(|(_, c)| c.is_whitespace() || "(,=<>+-*/".contains(*c))
            .map_or(0, |(i, c)| i + c.len_utf8());
        let begun = line[start..at].to_lowercase();
        let found = self
            .words
            .iter()
            .filter(|word| word.to_lowercase().starts_with(&begun));
        Ok((
            start,
            found
                .map(|word| Pair {
                    display: word.clone(),
                    replacement: word.clone(),
                })
                .collect(),
        ))
    }
}

impl Validator for Words {
    /// A statement goes on over lines until its `;`.
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let line = context.input().trim();
        let whole = line.is_empty()
            || line.ends_with(';')
            || line.starts_with('\\')
            || ["exit", "quit"].contains(&line);
        Ok(if whole {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}
