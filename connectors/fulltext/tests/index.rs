//! The embedded index through the seam: what is found, replaced, durable and isolated.

use std::collections::BTreeMap;
use std::path::Path;

use va_catalog::chunk::{OneOrMany, batch_of};
use va_catalog::{
    ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentId, DocumentRef, Filter, Reader,
    Readers, TenantId, Version, Viewer,
};
use va_fulltext::analysis::Grams;
use va_fulltext::{Analysis, HITS_MAX, Ranking, TantivyIndex, TextError, TextIndex};

fn collection(tenant: &str, name: &str) -> CollectionRef {
    CollectionRef {
        tenant: TenantId::new(tenant).expect("a valid name"),
        collection: CollectionName::new(name).expect("a valid name"),
    }
}

fn help() -> CollectionRef {
    collection("default", "help")
}

/// A chunk of the document `uri`.
fn chunk(to: &CollectionRef, uri: &str, version: u32, index: u32, text: &str) -> ChunkRecord {
    let document = DocumentId::of(to, uri);
    ChunkRecord {
        id: ChunkId::of(to, document, Version(version), index),
        document: DocumentRef {
            id: document,
            name: uri.to_owned(),
            uri: format!("file:///{uri}"),
            title: None,
            version: Version(version),
        },
        index,
        count: index + 1,
        title_path: vec![],
        page: Some(3),
        start: 5,
        end: 5 + text.chars().count() as u64,
        text: text.to_owned(),
        tokens: 7,
        tags: vec![
            format!("name={uri}"),
            format!("format={}", uri.rsplit('.').next().unwrap_or_default()),
        ],
    }
}

/// Replaces one document a text and commits.
async fn put(index: &TantivyIndex, to: &CollectionRef, texts: &[(&str, &str)]) {
    for (uri, text) in texts {
        apply(index, to, &[chunk(to, uri, 1, 0, text)]).await;
    }
    index.commit(to, "1").await.expect("a commit");
}

/// Replaces the documents of the chunks.
async fn apply(index: &TantivyIndex, to: &CollectionRef, chunks: &[ChunkRecord]) {
    let documents: Vec<_> = chunks.iter().map(|c| c.document.id).collect();
    let rows = batch_of(to, chunks).expect("rows");
    index.apply(to, &documents, &rows).await.expect("applied");
}

async fn found(index: &TantivyIndex, from: &CollectionRef, query: &str) -> Vec<String> {
    filtered(index, from, query, &Filter::default()).await
}

async fn filtered(
    index: &TantivyIndex,
    from: &CollectionRef,
    query: &str,
    filter: &Filter,
) -> Vec<String> {
    let hits = index.search(from, query, 10, filter).await.expect(query);
    assert!(hits.is_sorted_by(|a, b| a.score >= b.score), "{query}");
    hits.into_iter()
        .map(|hit| hit.chunk.document.name)
        .collect()
}

fn open(dir: &Path) -> TantivyIndex {
    TantivyIndex::open(dir.join("fulltext")).expect("an index")
}

#[tokio::test]
async fn words_are_found_however_they_are_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    put(
        &index,
        &help(),
        &[
            (
                "en",
                "To freeze a row, choose View - Freeze Rows and Columns.",
            ),
            ("zh", "要冻结行或列，请选择视图。单元格保持可见。"),
            (
                "hant",
                "要凍結欄，請選擇檢視。資料庫不受影響，資料庫可以與其他試算表的儲存格一起使用。",
            ),
            ("db", "数据库管理系统保存数据。"),
            ("mixed", "Excel表格的freeze功能, 零件号 abc123"),
            (
                "code",
                "Call index_writer.commit in C++ or IndexWriter in café mode",
            ),
            ("日本", "行を固定するにはテーブルを選択します"),
            ("한국", "행을 고정하려면 표를 선택하십시오"),
        ],
    )
    .await;
    for (query, expected) in [
        ("freezing rows", "en"),
        ("columns' view", "en"),
        ("ＡＢＣ１２３", "mixed"),
        ("ABC123", "mixed"),
        ("excel 功能", "mixed"),
        ("表格freeze", "mixed"),
        ("凍結行", "zh"),
        ("冻结 资料库", "hant"),
        ("資料庫", "hant"),
        ("數據庫", "db"),
        ("管理系统", "db"),
        ("index writer", "code"),
        ("commit", "code"),
        // Inside a longer word only, and across what the dictionary takes for words.
        ("库", "db"),
        ("理系", "db"),
        ("c++", "code"),
        ("CAFE", "code"),
        ("テーブル", "日本"),
        ("고정", "한국"),
    ] {
        let names = found(&index, &help(), query).await;
        assert_eq!(names.first().map(String::as_str), Some(expected), "{query}");
    }
    assert_eq!(
        found(&index, &help(), "zebra 斑马").await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn all_words_titles_and_quoted_words_come_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let mut titled = chunk(
        &help(),
        "titled",
        1,
        0,
        "Choose the view that you need here.",
    );
    titled.title_path = vec!["Envelopes".into()];
    apply(&index, &help(), &[titled]).await;
    put(
        &index,
        &help(),
        &[
            (
                "both",
                "The printer queue shows every job and each driver that is used.",
            ),
            ("one", "printer printer printer printer"),
            (
                "body",
                "Envelopes are made of paper, which comes in many sizes and colours, while labels are sticky on one side.",
            ),
            ("apart", "A row of a table, and later the header of a page."),
            ("beside", "A header row, of a page or of a table."),
        ],
    )
    .await;
    assert_eq!(
        found(&index, &help(), "printer driver").await,
        ["both", "one"]
    );
    assert_eq!(
        found(&index, &help(), "envelopes").await,
        ["titled", "body"]
    );
    assert_eq!(
        found(&index, &help(), "\"header row\"").await,
        ["beside", "apart"]
    );
}

#[tokio::test]
async fn filters_restrict_without_changing_scores() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    put(
        &index,
        &help(),
        &[
            ("a.x", "freeze row"),
            ("b.x", "freeze column"),
            ("c.y", "freeze pane"),
        ],
    )
    .await;
    let one = |value: &str| OneOrMany::One(value.into());
    let many = |values: &[&str]| OneOrMany::Many(values.iter().map(|v| v.to_string()).collect());
    let filter = |conditions: Vec<(&str, OneOrMany)>| {
        let conditions = conditions.into_iter().map(|(k, v)| (k.to_owned(), v));
        Filter::from(conditions.collect::<BTreeMap<_, _>>())
    };
    for (conditions, expected) in [
        (vec![("format", one("x"))], vec!["a.x", "b.x"]),
        (
            vec![("format", many(&["x", "y"]))],
            vec!["a.x", "b.x", "c.y"],
        ),
        (
            vec![("format", one("x")), ("name", many(&["b.x", "c.y"]))],
            vec!["b.x"],
        ),
        (vec![("format", one("z"))], vec![]),
        (vec![("format", many(&[]))], vec![]),
        (vec![("format", one("X"))], vec![]),
    ] {
        let mut names = filtered(&index, &help(), "freeze", &filter(conditions)).await;
        names.sort();
        assert_eq!(names, expected);
    }
    let search = async |filter: &Filter| {
        let hits = index
            .search(&help(), "freeze row", 10, filter)
            .await
            .expect("hits");
        hits[0].score
    };
    let restricted = filter(vec![("format", one("x")), ("name", one("a.x"))]);
    assert_eq!(search(&restricted).await, search(&Filter::default()).await);
}

#[tokio::test]
async fn who_may_not_read_a_chunk_gets_the_next_best() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let with = |uri: &str, text: &str, readers: &[&str]| {
        let mut chunk = chunk(&help(), uri, 1, 0, text);
        let readers = readers.iter().map(|r| r.parse().expect("a reader"));
        let readers = Readers::try_from(readers.collect::<Vec<Reader>>()).expect("readers");
        chunk.tags.extend(readers.tags());
        chunk
    };
    let chunks = [
        with(
            "secret.x",
            "salary salary salary",
            &["user:ann", "role:pay"],
        ),
        with("open.x", "salary and other words of a page", &[]),
        with("other.y", "holiday", &[]),
    ];
    apply(&index, &help(), &chunks).await;
    index.commit(&help(), "1").await.expect("a commit");
    let best = async |viewer: Viewer, query: &str| {
        let filter = Filter::default().seen_by(viewer);
        let hits = index.search(&help(), query, 1, &filter).await;
        let hits = hits.expect("hits").into_iter();
        hits.map(|hit| hit.chunk.document.name).collect::<Vec<_>>()
    };
    let only = |readers: &[&str]| {
        Viewer::Only(
            readers
                .iter()
                .map(|r| r.parse().expect("a reader"))
                .collect(),
        )
    };
    assert_eq!(best(Viewer::Everything, "salary").await, ["secret.x"]);
    assert_eq!(best(only(&["user:ann"]), "salary").await, ["secret.x"]);
    assert_eq!(
        best(only(&["user:bob", "role:pay"]), "salary").await,
        ["secret.x"]
    );
    assert_eq!(best(only(&["user:bob"]), "salary").await, ["open.x"]);
    assert_eq!(best(only(&[]), "salary").await, ["open.x"]);
    assert_eq!(best(only(&[]), "holiday").await, ["other.y"]);
}

#[tokio::test]
async fn hits_carry_the_whole_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let to = collection("租户", "帮助-2026");
    let mut written = chunk(&to, "冻结.html", 4, 2, "冻结行\u{0}与列");
    written.document.title = Some("标题".into());
    written.title_path = vec!["表格".into(), "冻结".into()];
    let index = open(dir.path());
    apply(&index, &to, std::slice::from_ref(&written)).await;
    index.commit(&to, "1").await.expect("a commit");
    drop(index);
    let index = open(dir.path());
    let hits = index
        .search(&to, "冻结", 1, &Filter::default())
        .await
        .expect("hits");
    assert_eq!(hits[0].chunk, written);
    assert_eq!(index.collections().await.expect("names"), vec![to.clone()]);
    let snapshot = index.snapshot(&to).await.expect("a snapshot");
    let keys = snapshot.expect("an index").chunk_keys().await;
    assert_eq!(keys.expect("keys"), [written.key()]);
}

#[tokio::test]
async fn documents_are_replaced_and_reapplying_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let to = help();
    let old = [
        chunk(&to, "a", 1, 0, "zebra"),
        chunk(&to, "a", 1, 1, "giraffe"),
    ];
    let new = [chunk(&to, "a", 2, 0, "lion")];
    apply(&index, &to, &old).await;
    apply(&index, &to, &[chunk(&to, "b", 1, 0, "zebra")]).await;
    index.commit(&to, "1").await.expect("a commit");
    assert_eq!(index.count(&to).await.expect("a count"), 3);
    for token in ["2", "3"] {
        apply(&index, &to, &new).await;
        apply(&index, &to, &new).await;
        index.commit(&to, token).await.expect("a commit");
        assert_eq!(index.count(&to).await.expect("a count"), 2);
        assert_eq!(found(&index, &to, "zebra giraffe").await, ["b"]);
        assert_eq!(found(&index, &to, "lion").await, ["a"]);
    }
    // A long document in two batches, sent twice; then removed.
    let document = old[0].document.id;
    for _ in 0..2 {
        let rows = |chunk: &ChunkRecord| batch_of(&to, std::slice::from_ref(chunk)).expect("rows");
        index
            .apply(&to, &[document], &rows(&old[0]))
            .await
            .expect("applied");
        index
            .apply(&to, &[], &rows(&old[1]))
            .await
            .expect("applied");
        index
            .apply(&to, &[], &rows(&old[1]))
            .await
            .expect("applied");
    }
    index.commit(&to, "4").await.expect("a commit");
    assert_eq!(index.count(&to).await.expect("a count"), 3);
    let nothing = batch_of(&to, &[]).expect("rows");
    index
        .apply(&to, &[document], &nothing)
        .await
        .expect("applied");
    index.commit(&to, "5").await.expect("a commit");
    assert_eq!(found(&index, &to, "giraffe zebra lion").await, ["b"]);
}

#[tokio::test]
async fn only_commits_survive() {
    let dir = tempfile::tempdir().expect("a directory");
    let to = help();
    let index = open(dir.path());
    assert_eq!(index.committed(&to).await.expect("no token"), None);
    put(&index, &to, &[("a", "zebra")]).await;
    apply(&index, &to, &[chunk(&to, "a", 2, 0, "lion")]).await;
    assert_eq!(found(&index, &to, "lion").await, Vec::<String>::new());
    assert_eq!(found(&index, &to, "zebra").await, ["a"]);
    // As a crash: everything that was not committed is gone.
    drop(index);
    let index = open(dir.path());
    assert_eq!(
        index.committed(&to).await.expect("a token").as_deref(),
        Some("1")
    );
    assert_eq!(found(&index, &to, "zebra lion").await, ["a"]);
    // As a pipeline that starts again in the same process.
    apply(&index, &to, &[chunk(&to, "b", 1, 0, "lion")]).await;
    index.rollback(&to).await.expect("rolled back");
    index.commit(&to, "偏移 2").await.expect("a commit");
    assert_eq!(index.count(&to).await.expect("a count"), 1);
    assert_eq!(
        index.committed(&to).await.expect("a token").as_deref(),
        Some("偏移 2")
    );
    // A commit of nothing creates the collection, so that its token lasts.
    let empty = collection("default", "empty");
    index.commit(&empty, "0").await.expect("a commit");
    assert_eq!(
        index.committed(&empty).await.expect("a token").as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn collections_and_tenants_do_not_see_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let names = ["a/x", "a/y", "b/x"].map(|name| {
        let (tenant, name) = name.split_once('/').expect("two names");
        collection(tenant, name)
    });
    for to in &names {
        put(&index, to, &[(to.to_string().as_str(), "secret zebra")]).await;
    }
    for from in &names {
        assert_eq!(found(&index, from, "zebra").await, [from.to_string()]);
    }
    // Rows of one collection cannot get into another, not even by mistake.
    let rows = batch_of(&names[2], &[chunk(&names[2], "b", 1, 0, "zebra")]).expect("rows");
    let error = index
        .apply(&names[0], &[], &rows)
        .await
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "a chunk row of collection `b/x` was sent to the index of `a/x`"
    );
    index.drop_collection(&names[0]).await.expect("dropped");
    index
        .drop_collection(&names[0])
        .await
        .expect("dropped already");
    assert_eq!(
        found(&index, &names[0], "zebra").await,
        Vec::<String>::new()
    );
    assert_eq!(index.committed(&names[0]).await.expect("no token"), None);
    assert_eq!(index.collections().await.expect("names"), names[1..]);
    put(&index, &names[0], &[("again", "zebra")]).await;
    assert_eq!(found(&index, &names[0], "zebra").await, ["again"]);
    assert_eq!(found(&index, &names[1], "zebra").await, ["a/y"]);
}

#[tokio::test]
async fn more_collections_than_writers() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    // The names are longer than a file name may be.
    let names: Vec<_> = (0..12)
        .map(|i| collection("default", &format!("{}{i}", "帮".repeat(120))))
        .collect();
    // All dirty at once, so no writer can be closed to make room.
    for to in &names {
        apply(&index, to, &[chunk(to, "a", 1, 0, "zebra")]).await;
    }
    for token in ["1", "2", "3"] {
        for to in &names {
            apply(&index, to, &[chunk(to, token, 1, 0, "zebra")]).await;
            index.commit(to, token).await.expect("a commit");
        }
    }
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(index.collections().await.expect("names"), sorted);
    for to in &names {
        assert_eq!(index.count(to).await.expect("a count"), 4);
        assert_eq!(
            index.committed(to).await.expect("a token").as_deref(),
            Some("3")
        );
    }
}

#[tokio::test]
async fn many_hits_in_many_segments() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let to = help();
    for part in 0..12u32 {
        let chunks: Vec<_> = (0..100)
            .map(|i| chunk(&to, &format!("d{part}-{i}"), 1, 0, "冻结 freeze"))
            .collect();
        apply(&index, &to, &chunks).await;
        index
            .commit(&to, &part.to_string())
            .await
            .expect("a commit");
    }
    let search = async |k| {
        let hits = index.search(&to, "freeze", k, &Filter::default()).await;
        hits.expect("hits").len()
    };
    assert_eq!(search(1000).await, 1000);
    assert_eq!(search(HITS_MAX).await, 1200);
    assert_eq!(search(0).await, 0);
    let error = index
        .search(&to, "freeze", HITS_MAX + 1, &Filter::default())
        .await
        .expect_err("too many");
    assert_eq!(
        error.to_string(),
        "cannot return 10001 hits, ask for at most 10000"
    );
    let snapshot = index.snapshot(&to).await.expect("a snapshot");
    let keys = snapshot.expect("an index").chunk_keys().await;
    assert_eq!(keys.expect("keys").len(), 1200);
}

#[tokio::test]
async fn whatever_is_typed_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    put(
        &index,
        &help(),
        &[("a", "and or not zebra 冻结 field tags")],
    )
    .await;
    let long = "冻结zebra ".repeat(20_000);
    let joined = "a".repeat(100_000);
    for (query, hits) in [
        ("zebra", 1),
        ("\"zebra", 1),
        ("\"\"\"\" zebra", 1),
        ("AND OR ( ) : * zebra~2^", 1),
        ("tags:zebra +field -zebra", 1),
        ("zebra\0冻结", 1),
        ("😀 zebra 👨‍👩‍👧", 1),
        (&long, 1),
        (&joined, 0),
        ("", 0),
        (" \t\n", 0),
        ("!!! ... ---", 0),
        ("😀", 0),
        ("\0", 0),
        ("，。「」", 0),
    ] {
        let names = found(&index, &help(), query).await;
        assert_eq!(names.len(), hits, "{:.40}", query);
    }
    // Rows that are no chunk rows are an error, not a panic.
    let rows = batch_of(&help(), &[])
        .expect("rows")
        .project(&[1])
        .expect("rows");
    let error = index.apply(&help(), &[], &rows).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "chunk rows: Schema error: column `tenant_id` is missing"
    );
}

#[tokio::test]
async fn an_index_of_another_analysis_is_refused_and_can_be_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("fulltext");
    let other = Analysis {
        guess_words: true,
        grams: Grams::None,
    };
    assert_ne!(other, Analysis::default());
    let old = TantivyIndex::open_with(&root, other, Ranking::default()).expect("an index");
    put(&old, &help(), &[("a", "zebra")]).await;
    drop(old);
    let index = open(dir.path());
    let error = index.count(&help()).await.expect_err("refused");
    assert!(matches!(error, TextError::Outdated { .. }), "{error}");
    index.drop_collection(&help()).await.expect("dropped");
    put(&index, &help(), &[("b", "zebra")]).await;
    assert_eq!(found(&index, &help(), "zebra").await, ["b"]);
}

#[tokio::test]
async fn a_second_writer_is_told_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path());
    put(&first, &help(), &[("a", "zebra")]).await;
    let second = open(dir.path());
    assert_eq!(found(&second, &help(), "zebra").await, ["a"]);
    let error = second.commit(&help(), "2").await.expect_err("busy");
    assert!(matches!(error, TextError::Busy { .. }), "{error}");
    drop(first);
    second.commit(&help(), "2").await.expect("a commit");
}

#[tokio::test]
async fn chunks_are_found_by_their_ids() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let chunks_of = |uri: &str, version: u32| -> Vec<ChunkRecord> {
        let text = |n: u32| {
            chunk(
                &help(),
                uri,
                version,
                n,
                &format!("{uri} 第{version}版 {n}"),
            )
        };
        (0..3).map(text).collect()
    };
    let (a1, a2, b1) = (chunks_of("a", 1), chunks_of("a", 2), chunks_of("b", 1));
    // Each commit is a segment of its own.
    for (chunks, token) in [(&a1, "1"), (&b1, "2")] {
        apply(&index, &help(), chunks).await;
        index.commit(&help(), token).await.expect("a commit");
    }
    let ids = |chunks: &[ChunkRecord]| chunks.iter().map(|c| c.id).collect::<Vec<_>>();
    let all = [ids(&a2), ids(&b1), ids(&a1)].concat();
    let snapshot = async || index.snapshot(&help()).await.expect("read").expect("one");
    let before = snapshot().await;
    apply(&index, &help(), &a2).await;
    index.commit(&help(), "3").await.expect("a commit");

    let check = |found: std::collections::HashMap<ChunkId, ChunkRecord>,
                 expected: &[&[ChunkRecord]]| {
        let expected = expected.concat();
        assert_eq!(found.len(), expected.len());
        assert!(expected.iter().all(|chunk| found[&chunk.id] == *chunk));
    };
    let after = snapshot().await.find(&all).await.expect("chunks");
    check(after, &[&a2, &b1]);
    // A snapshot stays what it was.
    check(before.find(&all).await.expect("chunks"), &[&a1, &b1]);
    check(before.find(&[]).await.expect("chunks"), &[]);

    index
        .apply(
            &help(),
            &[DocumentId::of(&help(), "b")],
            &batch_of(&help(), &[]).expect("rows"),
        )
        .await
        .expect("removed");
    index.commit(&help(), "4").await.expect("a commit");
    check(snapshot().await.find(&all).await.expect("chunks"), &[&a2]);
}

#[tokio::test]
async fn queries_that_are_searched_together_find_what_each_finds() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = open(dir.path());
    let to = help();
    let texts = ["freeze rows", "冻结 行", "rows and columns", "freeze"];
    let chunks: Vec<_> = (texts.iter().enumerate())
        .map(|(i, text)| chunk(&to, &format!("d{i}"), 1, 0, text))
        .collect();
    apply(&index, &to, &chunks).await;
    index.commit(&to, "1").await.expect("a commit");
    let snapshot = index.snapshot(&to).await.expect("a snapshot");
    let snapshot = snapshot.expect("an index");
    let (queries, all) = (["freeze", "", "zebra", "rows", "冻结"], Filter::default());
    let each = snapshot
        .search_each(&queries, 10, &all)
        .await
        .expect("hits");
    let counts: Vec<usize> = each.iter().map(Vec::len).collect();
    assert_eq!(counts, [2, 0, 0, 2, 1]);
    for (query, hits) in queries.iter().zip(&each) {
        let alone = snapshot.search(query, 10, &all).await;
        assert_eq!(*hits, alone.expect(query), "{query}");
    }
}
