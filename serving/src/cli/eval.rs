//! `va eval`: asks the questions of a file and says how good the answers are.
//!
//! A file is JSON lines: `{"question", "expected_documents": [...], "expected_text"?, "lang"?}`. A document is named by its
//! name, its URI, its id, or the end of one of the first two after a `/`. No expected documents means that the collection
//! does not hold the answer. What is measured is told in `docs/answers.md`; [`measure`] is a pure function.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ask::SearchArgs;
use super::client::{Client, Failure, Outcome};
use super::search::only_collection;
use super::table::print;
use crate::rag::{Lang, bare};

/// Ask the questions of a file and measure the answers: found, cited rightly, retrieved, refused, how fast.
#[derive(Args)]
#[command(
    after_help = "Example: va eval questions.jsonl --collection help --rerank none
A line of the file: {\"question\": \"如何冻结行？\", \"expected_documents\": [\"line_fix.html\"], \"expected_text\": \"窗口 - 冻结\"}"
)]
pub struct EvalArgs {
    /// JSON lines.
    pub file: PathBuf,
    /// The collection; may be left out when there is only one.
    #[arg(long, short)]
    pub collection: Option<String>,
    /// Passages that an answer may be made from, 1 to 20; 6 when left out.
    #[arg(short)]
    pub k: Option<u32>,
    #[command(flatten)]
    pub search: SearchArgs,
    /// The measures and every question with its answer.
    #[arg(long)]
    pub json: bool,
}

/// A question with what is right.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    question: String,
    /// Those that hold the answer; none when the collection does not.
    expected_documents: Vec<String>,
    /// The answer, or the whole passage that it is in.
    expected_text: Option<String>,
    /// For the table; guessed from the question when left out.
    lang: Option<String>,
}

/// What one question came to.
#[derive(Debug, Clone, Default, Serialize)]
struct Judged {
    /// Whether documents are expected.
    answerable: bool,
    answered: bool,
    /// A quote is in the expected text or holds it; without such a text, an expected document is cited.
    found: bool,
    /// The same for the whole cited passage.
    in_passage: bool,
    citations: usize,
    citations_right: usize,
    expected: usize,
    expected_cited: usize,
    /// Of the first source that is an expected document.
    rank: Option<usize>,
    took_ms: f64,
}

/// The figures of a set of questions. Shares are from 0 to 1; `None` where there is nothing to share.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Measures {
    questions: usize,
    answerable: usize,
    /// Of the answerable ones.
    answer_found: Option<f64>,
    in_passage: Option<f64>,
    citation_precision: Option<f64>,
    citation_recall: Option<f64>,
    recall_at_k: Option<f64>,
    mrr: Option<f64>,
    no_answer: Option<f64>,
    /// Of the others: those that were answered all the same.
    answered_wrongly: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
}

pub async fn eval(client: &Client, args: &EvalArgs) -> Outcome<()> {
    let cases = read(args)?;
    let collection = match &args.collection {
        Some(collection) => collection.clone(),
        None => only_collection(client).await?,
    };
    // Only a terminal shows it.
    let bar = ProgressBar::new(cases.len() as u64);
    let mut judged: Vec<(String, Judged)> = Vec::new();
    let mut asked: Vec<Value> = Vec::new();
    for case in &cases {
        let mut request = json!({"question": case.question, "collection": collection});
        if let Some(k) = args.k {
            request["k"] = json!(k);
        }
        args.search.add_to(&mut request);
        let started = Instant::now();
        let reply = client
            .post("/api/v1/rag/query", &request)
            .await
            .map_err(|failure| Failure {
                message: format!("`{}`: {}", case.question, failure.message),
                ..failure
            })?;
        let outcome = judge(case, &reply, started.elapsed().as_secs_f64() * 1_000.0);
        let lang = case
            .lang
            .clone()
            .unwrap_or_else(|| match Lang::of(&case.question) {
                Lang::Zh => "zh".into(),
                Lang::En => "en".into(),
            });
        if args.json {
            let quotes = reply["citations"].as_array().into_iter().flatten();
            asked.push(json!({
                "question": case.question,
                "lang": lang,
                "judged": outcome,
                "answer": reply["answer"],
                "quotes": quotes.map(|c| json!([c["document"]["name"], c["quote"]])).collect::<Vec<_>>(),
                "grade": reply["trace"]["grade"],
                "rounds": reply["trace"]["rounds"],
                "rerank": reply["trace"]["rerank"],
                "degraded": reply["degraded"],
            }));
        }
        judged.push((lang, outcome));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut by_lang: BTreeMap<&str, Vec<&Judged>> = BTreeMap::new();
    for (lang, outcome) in &judged {
        by_lang.entry(lang).or_default().push(outcome);
    }
    let all: Vec<&Judged> = judged.iter().map(|(_, outcome)| outcome).collect();
    if args.json {
        let by_lang: BTreeMap<&str, Measures> = by_lang
            .iter()
            .map(|(lang, set)| (*lang, measure(set)))
            .collect();
        let report = json!({
            "collection": collection, "all": measure(&all), "by_lang": by_lang, "questions": asked,
        });
        println!("{report}");
        return Ok(());
    }
    let mut rows: Vec<Vec<String>> = by_lang
        .iter()
        .map(|(lang, set)| row(lang, &measure(set)))
        .collect();
    if by_lang.len() > 1 {
        rows.push(row("all", &measure(&all)));
    }
    print(
        &[
            "LANG",
            "QUESTIONS",
            "ANSWERABLE",
            "FOUND",
            "IN PASSAGE",
            "CIT. PRECISION",
            "CIT. RECALL",
            "RECALL@K",
            "MRR",
            "NO ANSWER",
            "WRONGLY ANSWERED",
            "P50 MS",
            "P99 MS",
        ],
        &rows,
    );
    Ok(())
}

/// The questions of the file; the first line that is none is named.
fn read(args: &EvalArgs) -> Outcome<Vec<Case>> {
    let name = args.file.display();
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| Failure::usage(format!("read `{name}`: {error}")))?;
    let mut cases = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let case: Case = serde_json::from_str(line).map_err(|error| {
            Failure::usage(format!(
                "{name}:{}: {error}; a line is {{\"question\": \"...\", \"expected_documents\": [\"...\"], \
                 \"expected_text\": \"...\", \"lang\": \"zh\"}}, the last two may be left out",
                number + 1
            ))
        })?;
        cases.push(case);
    }
    if cases.is_empty() {
        return Err(Failure::usage(format!("`{name}` holds no question")));
    }
    Ok(cases)
}

/// Compares a reply with what is right.
fn judge(case: &Case, reply: &Value, took_ms: f64) -> Judged {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let citations = list(&reply["citations"]);
    let right = |citation: &&Value| is_expected(case, &citation["document"]);
    let cited: Vec<&Value> = citations.iter().filter(right).collect();
    let holds = |citation: &&Value, field: &str| {
        let text = match field {
            "quote" => &citation["quote"],
            _ => &citation["chunk"]["text"],
        };
        let Some(expected) = &case.expected_text else {
            return true;
        };
        let (text, expected) = (bare(text.as_str().unwrap_or_default()), bare(expected));
        // A quote from the passage, or around the answer.
        text.contains(&expected)
            || expected.contains(&bare(citation["quote"].as_str().unwrap_or_default()))
    };
    let sources = list(&reply["trace"]["sources"]);
    let rank = sources
        .iter()
        .position(|source| is_expected(case, &source["document"]));
    let expected_cited = case
        .expected_documents
        .iter()
        .filter(|expected| citations.iter().any(|c| names(expected, &c["document"])))
        .count();
    Judged {
        answerable: !case.expected_documents.is_empty(),
        answered: reply["answered"] == true,
        found: cited.iter().any(|c| holds(c, "quote")),
        in_passage: cited.iter().any(|c| holds(c, "chunk")),
        citations: citations.len(),
        citations_right: cited.len(),
        expected: case.expected_documents.len(),
        expected_cited,
        rank: rank.map(|rank| rank + 1),
        took_ms,
    }
}

fn is_expected(case: &Case, document: &Value) -> bool {
    case.expected_documents
        .iter()
        .any(|expected| names(expected, document))
}

/// Whether `expected` is the document's id, name or URI, or the end of one of the latter.
fn names(expected: &str, document: &Value) -> bool {
    ["id", "name", "uri"].iter().any(|field| {
        let whole = document[*field].as_str().unwrap_or_default();
        let before = whole.strip_suffix(expected);
        before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
    })
}

/// The figures of some questions.
fn measure(set: &[&Judged]) -> Measures {
    let share = |part: f64, whole: usize| (whole > 0).then(|| part / whole as f64);
    let answerable: Vec<&&Judged> = set.iter().filter(|j| j.answerable).collect();
    let others: Vec<&&Judged> = set.iter().filter(|j| !j.answerable).collect();
    let count =
        |of: &[&&Judged], what: fn(&Judged) -> bool| of.iter().filter(|j| what(j)).count() as f64;
    let sum = |what: fn(&Judged) -> usize| answerable.iter().map(|j| what(j)).sum::<usize>();
    let mut times: Vec<f64> = set.iter().map(|j| j.took_ms).collect();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let rank = (part * times.len() as f64).ceil() as usize;
        times
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    };
    let reciprocal: f64 = answerable
        .iter()
        .filter_map(|j| j.rank)
        .map(|rank| 1.0 / rank as f64)
        .sum();
    Measures {
        questions: set.len(),
        answerable: answerable.len(),
        answer_found: share(count(&answerable, |j| j.found), answerable.len()),
        in_passage: share(count(&answerable, |j| j.in_passage), answerable.len()),
        citation_precision: share(sum(|j| j.citations_right) as f64, sum(|j| j.citations)),
        citation_recall: share(sum(|j| j.expected_cited) as f64, sum(|j| j.expected)),
        recall_at_k: share(count(&answerable, |j| j.rank.is_some()), answerable.len()),
        mrr: share(reciprocal, answerable.len()),
        no_answer: share(count(&answerable, |j| !j.answered), answerable.len()),
        answered_wrongly: share(count(&others, |j| j.answered), others.len()),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    }
}

fn row(lang: &str, measures: &Measures) -> Vec<String> {
    let share = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    vec![
        lang.to_owned(),
        measures.questions.to_string(),
        measures.answerable.to_string(),
        share(measures.answer_found),
        share(measures.in_passage),
        share(measures.citation_precision),
        share(measures.citation_recall),
        share(measures.recall_at_k),
        share(measures.mrr),
        share(measures.no_answer),
        share(measures.answered_wrongly),
        format!("{:.0}", measures.p50_ms),
        format!("{:.0}", measures.p99_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(documents: &[&str], text: Option<&str>) -> Case {
        Case {
            question: "q".into(),
            expected_documents: documents.iter().map(|d| (*d).to_owned()).collect(),
            expected_text: text.map(ToOwned::to_owned),
            lang: None,
        }
    }

    /// A reply that cites `(document, quote, chunk text)`, with these sources.
    fn reply(cited: &[(&str, &str, &str)], sources: &[&str]) -> Value {
        let document =
            |name: &str| json!({"id": "0", "name": name, "uri": format!("/docs/{name}")});
        let cited: Vec<Value> = cited
            .iter()
            .map(|(name, quote, text)| json!({"document": document(name), "quote": quote, "chunk": {"text": text}}))
            .collect();
        let sources: Vec<Value> = sources
            .iter()
            .map(|name| json!({"document": document(name)}))
            .collect();
        json!({"answered": !cited.is_empty(), "citations": cited, "trace": {"sources": sources}})
    }

    #[test]
    fn documents_are_named_by_their_ends() {
        let document = json!({"id": "ab", "name": "zh/a.html", "uri": "/x/zh/a.html"});
        for (expected, same) in [
            ("ab", true),
            ("a.html", true),
            ("zh/a.html", true),
            ("h/a.html", false),
            ("b", false),
        ] {
            assert_eq!(names(expected, &document), same, "{expected}");
        }
    }

    #[test]
    fn figures() {
        let right = judge(
            &case(&["a.html"], Some("Press Ctrl+S.")),
            &reply(
                &[
                    ("a.html", "press CTRL S", "x press ctrl s y"),
                    ("b.html", "no", "no"),
                ],
                &["b.html", "a.html"],
            ),
            10.0,
        );
        assert!(right.found && right.in_passage && right.rank == Some(2));
        let passage_only = judge(
            &case(&["a.html"], Some("the answer")),
            &reply(
                &[("a.html", "another sentence", "another sentence. the answer")],
                &["a.html"],
            ),
            20.0,
        );
        assert!(!passage_only.found && passage_only.in_passage);
        let silent = judge(
            &case(&["a.html", "c.html"], None),
            &reply(&[], &["b.html"]),
            30.0,
        );
        let refused = judge(&case(&[], None), &reply(&[], &["b.html"]), 40.0);
        let invented = judge(
            &case(&[], None),
            &reply(&[("b.html", "x", "x")], &["b.html"]),
            50.0,
        );
        let measures = measure(&[&right, &passage_only, &silent, &refused, &invented]);
        let third = |n: f64| Some(n / 3.0);
        let expected = Measures {
            questions: 5,
            answerable: 3,
            answer_found: third(1.0),
            in_passage: third(2.0),
            citation_precision: third(2.0),
            citation_recall: Some(0.5),
            recall_at_k: third(2.0),
            mrr: Some((0.5 + 1.0) / 3.0),
            no_answer: third(1.0),
            answered_wrongly: Some(0.5),
            p50_ms: 30.0,
            p99_ms: 50.0,
        };
        assert_eq!(measures, expected);
    }
}
