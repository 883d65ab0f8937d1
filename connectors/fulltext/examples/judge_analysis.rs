//! Judges ways of analysis and ranking by labelled queries: the index of LibreOffice's help.
//!
//! Each keyword of `bookmarks.js` belongs to the pages that it links to. The pages are indexed through the product's
//! own index; what counts is whether such a page is among the first. `ANALYSIS.md` says how to get the help and keeps
//! the result. HTML is stripped crudely here: this is about finding, not about parsing.
//!
//!     cargo run -p va-fulltext --example judge_analysis -- HELP_DIR [every Nth query]

#![expect(
    clippy::disallowed_methods,
    reason = "run by hand, one at a time: a fixed place is easy to look into"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use va_catalog::chunk::batch_of;
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter, TenantId,
    Version,
};
use va_fulltext::analysis::Grams;
use va_fulltext::{Analysis, Ranking, TantivyIndex, TextIndex};

/// Keywords with the pages they belong to.
type Queries = BTreeMap<String, BTreeSet<String>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let help = PathBuf::from(args.next().ok_or("usage: judge_analysis HELP_DIR [N]")?);
    let every = args.next().map_or(Ok(1), |n| n.parse())?;
    let started = Instant::now();
    let before = memory_kb();
    Analysis::default().terms("数据库");
    eprintln!(
        "dictionary: {} ms, {} kB",
        started.elapsed().as_millis(),
        memory_kb().saturating_sub(before)
    );
    let languages = ["zh-CN", "en-US"];
    let mut corpora = Vec::new();
    for language in languages {
        let pages = pages(&help.join(language).join("text"), language)?;
        let bookmarks = std::fs::read_to_string(help.join(language).join("bookmarks.js"))?;
        let queries = queries(&bookmarks, every);
        eprintln!(
            "{language}: {} chunks, {} queries",
            pages.len(),
            queries.len()
        );
        corpora.push((language, pages, queries));
    }
    println!(
        "| variant | zh recall@5 | zh MRR@10 | zh-Hant recall@5 | en recall@5 | en MRR@10 | ms/query | MB zh | index s zh |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (analysis, rankings) in variants() {
        let dir = std::env::temp_dir().join(format!("judge-{}", std::process::id()));
        let mut indexing = 0.0;
        let mut size = 0;
        let index = TantivyIndex::open_with(&dir, analysis, Ranking::default())?;
        for (language, chunks, _) in &corpora {
            let to = collection(language)?;
            let started = Instant::now();
            for part in chunks.chunks(500) {
                index.apply(&to, &[], &batch_of(&to, part)?).await?;
            }
            index.commit(&to, "1").await?;
            if *language == "zh-CN" {
                indexing = started.elapsed().as_secs_f64();
                size = size_of_dir(&dir)?;
            }
        }
        drop(index);
        for (name, ranking) in rankings {
            let index = TantivyIndex::open_with(&dir, analysis, ranking)?;
            let mut cells = Vec::new();
            let (mut spent, mut asked) = (0.0, 0);
            for (language, _, queries) in &corpora {
                let from = collection(language)?;
                let started = Instant::now();
                let (recall, mrr) = judge(&index, &from, queries, &|q| q.to_owned()).await?;
                spent += started.elapsed().as_secs_f64();
                asked += queries.len();
                cells.push(format!("{recall:.3} | {mrr:.3}"));
                if *language == "zh-CN" {
                    let (recall, _) = judge(&index, &from, queries, &|q| hanconv::s2t(q)).await?;
                    cells.push(format!("{recall:.3}"));
                }
            }
            println!(
                "| {name} | {} | {:.2} | {:.1} | {indexing:.1} |",
                cells.join(" | "),
                1000.0 * spent / asked as f64,
                size as f64 / 1e6
            );
        }
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// A way of analysis with the rankings to judge on it.
type Variants = (Analysis, Vec<(String, Ranking)>);

fn variants() -> Vec<Variants> {
    let chosen = Ranking::default();
    let mut rankings = vec![("chosen".to_owned(), chosen)];
    for title in [0.0, 0.5, 2.0, 4.0] {
        rankings.push((format!("title {title}"), Ranking { title, ..chosen }));
    }
    for all_words in [0.0, 0.25, 1.0, 2.0] {
        let ranking = Ranking {
            all_words,
            ..chosen
        };
        rankings.push((format!("all words {all_words}"), ranking));
    }
    for part in [0.0, 0.5, 1.0] {
        rankings.push((format!("part {part}"), Ranking { part, ..chosen }));
    }
    for phrase in [0.0, 0.5] {
        rankings.push((format!("phrase {phrase}"), Ranking { phrase, ..chosen }));
    }
    let mut variants = vec![(Analysis::default(), rankings)];
    for (guess_words, words) in [(false, "dictionary words"), (true, "guessed words")] {
        for (grams, weights) in [
            (Grams::None, vec![(0.0, 0.0)]),
            (Grams::Singles, vec![(0.0, 0.0), (0.0, 0.2)]),
            (Grams::Pairs, vec![(0.2, 0.0), (0.5, 0.0), (1.0, 0.0)]),
            (Grams::Both, vec![(0.5, 0.0), (0.5, 0.1)]),
        ] {
            let rankings = weights.into_iter().map(|(pair, single)| {
                let ranking = Ranking {
                    pair,
                    single,
                    ..chosen
                };
                let name = format!("{words}, {grams:?}, pair {pair}, single {single}");
                (name, ranking)
            });
            let analysis = Analysis { guess_words, grams };
            variants.push((analysis, rankings.collect()));
        }
    }
    variants
}

/// Share of queries with a right page among the first five, and mean reciprocal rank of the first right page of ten.
async fn judge(
    index: &TantivyIndex,
    from: &CollectionRef,
    queries: &Queries,
    write: &dyn Fn(&str) -> String,
) -> Result<(f64, f64), Box<dyn Error>> {
    let (mut recall, mut mrr) = (0.0, 0.0);
    for (query, right) in queries {
        let hits = index
            .search(from, &write(query), 40, &Filter::default())
            .await?;
        let mut pages: Vec<String> = Vec::new();
        for hit in hits {
            if !pages.contains(&hit.chunk.document.uri) {
                pages.push(hit.chunk.document.uri);
            }
        }
        if let Some(rank) = pages.iter().take(10).position(|page| right.contains(page)) {
            mrr += 1.0 / (rank + 1) as f64;
            recall += if rank < 5 { 1.0 } else { 0.0 };
        }
    }
    let count = queries.len() as f64;
    Ok((recall / count, mrr / count))
}

/// Reads `{url:"zh-CN/text/a.html?x#y", app:"...", text:"a -- b"}` lines.
fn queries(bookmarks: &str, every: usize) -> Queries {
    let mut queries = Queries::new();
    for line in bookmarks.lines() {
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            Some(rest.split_once('"')?.0)
        };
        let (Some(url), Some(text)) = (field("url:\""), field("text:\"")) else {
            continue;
        };
        let page = url.split(['?', '#']).next().unwrap_or(url).to_owned();
        let text = text.replace(" --", " ");
        queries.entry(text).or_default().insert(page);
    }
    queries.into_iter().step_by(every).collect()
}

fn collection(language: &str) -> Result<CollectionRef, Box<dyn Error>> {
    Ok(CollectionRef {
        tenant: TenantId::default_tenant(),
        collection: CollectionName::new(language)?,
    })
}

/// The pages below a directory as chunks of about 300 words.
fn pages(dir: &Path, language: &str) -> Result<Vec<ChunkRecord>, Box<dyn Error>> {
    let to = collection(language)?;
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "html") {
                files.push(path);
            }
        }
    }
    files.sort();
    let chars = if language.starts_with("zh") {
        500
    } else {
        1500
    };
    let mut chunks = Vec::new();
    for file in files {
        let html = std::fs::read_to_string(&file)?;
        let uri = format!("{language}/text/{}", file.strip_prefix(dir)?.display());
        let title = between(&html, "<title>", "</title>").map(strip);
        let body = html
            .split_once("id=\"DisplayArea\"")
            .map_or("", |(_, body)| body);
        let text = strip(body.split_once('>').map_or("", |(_, body)| body));
        let id = DocumentId::of(&to, &uri);
        for (index, text) in pieces(&text, chars).into_iter().enumerate() {
            let index = index as u32;
            chunks.push(ChunkRecord {
                id: ChunkId::of(&to, id, Version(1), index),
                document: DocumentRef {
                    id,
                    name: uri.rsplit('/').next().unwrap_or(&uri).to_owned(),
                    uri: uri.clone(),
                    title: title.clone(),
                    version: Version(1),
                },
                index,
                count: 0,
                title_path: vec![],
                page: None,
                start: 0,
                end: 0,
                text,
                tokens: 0,
                tags: vec![],
            });
        }
    }
    Ok(chunks)
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    Some(rest.split_once(to)?.0)
}

fn strip(html: &str) -> String {
    let mut text = String::new();
    for piece in html.split('<') {
        let (tag, rest) = piece.split_once('>').unwrap_or(("", piece));
        let inline = ["span", "/span", "a", "/a", "b", "/b", "i", "/i"];
        if !inline.contains(&tag.split(' ').next().unwrap_or(tag)) {
            text.push('\n');
        }
        text.push_str(rest);
    }
    for (entity, ch) in [
        ("&nbsp;", " "),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ] {
        text = text.replace(entity, ch);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

/// Lines put together up to about `chars_max` characters.
fn pieces(text: &str, chars_max: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for line in text.lines() {
        let last = pieces.len() - 1;
        if !pieces[last].is_empty()
            && pieces[last].chars().count() + line.chars().count() > chars_max
        {
            pieces.push(String::new());
        }
        let last = pieces.len() - 1;
        pieces[last].push_str(line);
        pieces[last].push('\n');
    }
    pieces
}

fn size_of_dir(dir: &Path) -> Result<u64, Box<dyn Error>> {
    let mut size = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        size += match entry.file_type()?.is_dir() {
            true => size_of_dir(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(size)
}

/// Resident memory of this process; 0 where the system does not say.
fn memory_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
