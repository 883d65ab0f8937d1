//! Messages over months: where they land on PostgreSQL, what the chore makes, moves and removes, and that both databases
//! show the same of it.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Executor as _, Row as _, SqliteConnection};

use crate::*;

on_both!(
    messages_of_before_the_months_are_kept,
    messages_of_several_months_are_one_conversation,
    months_that_are_not_kept_go,
);

/// The first of November 2026, and the length of a day.
const NOVEMBER: i64 = 1_793_491_200_000;
const DAY: i64 = 86_400_000;

fn owner() -> Owner {
    Owner {
        tenant: TenantScope::internal(tenant("default"), Internal::Test),
        id: "usr_ann".to_owned(),
    }
}

async fn say(bench: &Bench, conversation: &str, at: i64, text: &str) -> StoredMessage {
    bench.clock.store(at, Ordering::SeqCst);
    let begun = bench
        .catalog
        .begin_answer(&owner(), conversation, Some(text.into()), "chat")
        .await;
    let (question, answer) = begun.expect("begun");
    let finished = FinishedAnswer {
        content: "好",
        reason: None,
        citations: &serde_json::json!([]),
        usage: &serde_json::Value::Null,
    };
    bench
        .catalog
        .finish_answer(&owner(), conversation, &answer.id, &finished)
        .await
        .expect("finished");
    question.expect("a question")
}

async fn begin(bench: &Bench, at: i64) -> String {
    bench.clock.store(at, Ordering::SeqCst);
    let made = bench
        .catalog
        .create_conversation(&owner(), "t", None, None)
        .await;
    made.expect("made").id
}

/// How many messages are in which partition.
async fn partitions(bench: &Bench) -> Vec<(String, i64)> {
    let mut connection = PgConnection::connect(&bench.location)
        .await
        .expect("a connection");
    connection
        .execute("SELECT set_config('va.tenant', '*', false)")
        .await
        .expect("set");
    let rows = sqlx::query(
        "SELECT CAST(CAST(tableoid AS regclass) AS TEXT) AS name, COUNT(*) AS rows FROM messages GROUP BY 1 ORDER BY 1",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rows");
    connection.close().await.expect("closed");
    rows.iter()
        .map(|row| (row.get("name"), row.get("rows")))
        .collect()
}

async fn texts(bench: &Bench, conversation: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut page = Page::first(1);
    loop {
        let listing = bench.catalog.messages(&owner(), conversation, &page).await;
        let listing = listing.expect("a page");
        texts.extend(listing.items.into_iter().map(|one| one.content));
        match listing.next {
            Some(next) => page.cursor = Some(next),
            None => return texts,
        }
    }
}

/// What a database of the version before has: a conversation over two months, whose first message is of a clock that was
/// behind.
fn as_before() -> String {
    let message = |seq: i64, at: i64| {
        format!(
            "INSERT INTO messages (tenant_id, conversation_id, seq, id, role, content, folded, state, citations, created_at) \
             VALUES ('default', 'conv_a', {seq}, 'msg_{seq}', 'user', 'M{seq}', 'm{seq}', 'complete', '[]', {at});"
        )
    };
    format!(
        "INSERT INTO tenants (name, description, created_at) VALUES ('default', '', 0); \
         INSERT INTO conversations (tenant_id, id, owner, title, folded, created_at, updated_at) \
         VALUES ('default', 'conv_a', 'usr_ann', 't', 't', {}, {}); {} {} {}",
        NOVEMBER + DAY,
        NOVEMBER + DAY,
        message(1, NOVEMBER),
        message(2, NOVEMBER + DAY),
        message(3, NOVEMBER + 30 * DAY),
    )
}

async fn messages_of_before_the_months_are_kept(on: On) {
    let folder = tempfile::tempdir().expect("a folder");
    let (kind, location) = match on {
        On::Sqlite => (
            "sqlite",
            folder.path().join("catalog.db").display().to_string(),
        ),
        On::Postgres(server) => ("postgres", new_database(server, "").await),
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("migrations")
        .join(kind);
    let mut migrator = Migrator::new(source.as_path()).await.expect("migrations");
    migrator.migrations.to_mut().retain(|one| one.version <= 7);
    let fill = as_before();
    match on {
        On::Sqlite => {
            let options = SqliteConnectOptions::new()
                .filename(&location)
                .create_if_missing(true);
            let mut connection = SqliteConnection::connect_with(&options)
                .await
                .expect("a connection");
            migrator.run_direct(&mut connection).await.expect("tables");
            connection.execute(fill.as_str()).await.expect("filled");
            connection.close().await.expect("closed");
        }
        On::Postgres(_) => {
            let mut connection = PgConnection::connect(&location)
                .await
                .expect("a connection");
            migrator.run_direct(&mut connection).await.expect("tables");
            connection.execute(fill.as_str()).await.expect("filled");
            connection.close().await.expect("closed");
        }
    }
    let clock = Arc::new(AtomicI64::new(NOVEMBER + 31 * DAY));
    let catalog = open(&location, &clock).await;
    let bench = Bench {
        catalog,
        clock,
        folder,
        location,
    };
    assert_eq!(texts(&bench, "conv_a").await, ["M1", "M2", "M3"]);
    if bench.catalog.is_shared() {
        let months = [
            ("messages_2026_11".to_owned(), 2),
            ("messages_2026_12".to_owned(), 1),
        ];
        assert_eq!(partitions(&bench).await, months);
    }
    let next = say(&bench, "conv_a", NOVEMBER + 31 * DAY, "M4").await;
    assert_eq!(next.seq, 4, "numbers go on");
    let found = bench
        .catalog
        .conversations(&owner(), Some("m1"), &Page::default())
        .await;
    let found = found.expect("found").items;
    assert_eq!((found.len(), found[0].created_at), (1, NOVEMBER));
}

async fn messages_of_several_months_are_one_conversation(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let id = begin(&bench, NOVEMBER + DAY).await;
    let first = say(&bench, &id, NOVEMBER + DAY, "十一月").await;
    let second = say(&bench, &id, NOVEMBER + 30 * DAY, "December").await;
    assert_eq!((first.seq, second.seq), (1, 3));
    if catalog.is_shared() {
        // Nobody has made the months yet, and nothing failed for it.
        let all = [("messages_default".to_owned(), 4)];
        assert_eq!(partitions(&bench).await, all);
    }
    let done = catalog.keep_message_months_all_tenants(None).await;
    let done = done.expect("done");
    if catalog.is_shared() {
        let mut made = done.made.clone();
        made.sort();
        assert_eq!(
            made,
            [
                "messages_2026_11",
                "messages_2026_12",
                "messages_2027_01",
                "messages_2027_02"
            ]
        );
        assert_eq!(done.moved, 4);
        let months = [
            ("messages_2026_11".to_owned(), 2),
            ("messages_2026_12".to_owned(), 2),
        ];
        assert_eq!(partitions(&bench).await, months);
    } else {
        assert_eq!(done, MessageMonths::default());
    }
    let again = catalog.keep_message_months_all_tenants(None).await;
    assert_eq!(again.expect("done"), MessageMonths::default());

    // Straight into its month, and one conversation for whoever reads, searches and judges.
    say(&bench, &id, NOVEMBER + 61 * DAY, "Januar 一月").await;
    if catalog.is_shared() {
        let last = partitions(&bench).await.pop();
        assert_eq!(last, Some(("messages_2027_01".to_owned(), 2)));
    }
    let all = ["十一月", "好", "December", "好", "Januar 一月", "好"];
    assert_eq!(texts(&bench, &id).await, all);
    let last = catalog
        .last_messages(&owner(), &id, 3)
        .await
        .expect("three");
    let last: Vec<_> = last.iter().map(|one| one.seq).collect();
    assert_eq!(last, [4, 5, 6]);
    for search in ["十一月", "DECEMBER", "januar"] {
        let found = catalog
            .conversations(&owner(), Some(search), &Page::default())
            .await
            .expect("found");
        assert_eq!(found.items.len(), 1, "{search}");
    }
    let answers = catalog.messages(&owner(), &id, &Page::default()).await;
    let answer = &answers.expect("messages").items[1];
    let judged = catalog
        .set_feedback(&owner(), &id, &answer.id, Feedback::Up, None)
        .await;
    assert_eq!(judged.expect("judged").feedback, Some(Feedback::Up));
    catalog
        .delete_conversation(&owner(), &id)
        .await
        .expect("gone");
    if catalog.is_shared() {
        assert!(partitions(&bench).await.is_empty());
    }
}

async fn months_that_are_not_kept_go(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let old = begin(&bench, NOVEMBER + DAY).await;
    say(&bench, &old, NOVEMBER + DAY, "old").await;
    let both = begin(&bench, NOVEMBER + 29 * DAY).await;
    say(&bench, &both, NOVEMBER + 29 * DAY, "last of November").await;
    let summary = ConversationSummary {
        text: "November".to_owned(),
        seq: 2,
    };
    let kept = catalog
        .keep_conversation_summary(&owner(), &both, &summary)
        .await;
    assert!(kept.expect("kept"));
    catalog
        .keep_message_months_all_tenants(Some(1))
        .await
        .expect("done");
    assert_eq!(texts(&bench, &old).await.len(), 2, "its month is kept");
    say(&bench, &both, NOVEMBER + 30 * DAY, "first of December").await;
    // In January, with one month kept before it, December stays.
    bench.clock.store(NOVEMBER + 65 * DAY, Ordering::SeqCst);
    let done = catalog.keep_message_months_all_tenants(Some(1)).await;
    let done = done.expect("done");
    assert_eq!((done.messages_removed, done.conversations_removed), (4, 1));
    if catalog.is_shared() {
        assert_eq!(done.dropped, ["messages_2026_11"]);
    }
    assert_eq!(texts(&bench, &both).await, ["first of December", "好"]);
    let gone = catalog.conversation(&owner(), &old).await;
    assert!(
        matches!(gone, Err(CatalogError::NotFound { .. })),
        "{gone:?}"
    );
    // What was summed up is forgotten too, numbers go on, and the trail tells it.
    let summary = catalog.conversation_summary(&owner(), &both).await;
    assert_eq!(summary.expect("asked"), None);
    let next = say(&bench, &both, NOVEMBER + 65 * DAY, "January").await;
    assert_eq!(next.seq, 5);
    let trail = catalog
        .audit_events(&tenant("default"), &Page::default())
        .await;
    let trail = trail.expect("a trail").items;
    assert_eq!(trail.len(), 1, "{trail:?}");
    assert_eq!(trail[0].action, "messages.month_removed");
    let detail = trail[0].detail.as_deref().unwrap_or_default();
    assert!(detail.contains("4 messages of before 2026-12"), "{detail}");
    let events = catalog.outbox_all_tenants(100).await.expect("events");
    let deleted: Vec<_> = events
        .iter()
        .filter(|one| one.event.kind == EventKind::Deleted)
        .map(|one| one.event.conversation_id.as_str())
        .collect();
    assert_eq!(deleted, [old.as_str()]);
    let again = catalog.keep_message_months_all_tenants(Some(1)).await;
    assert_eq!(again.expect("done"), MessageMonths::default());
}
