//! Summaries and instructions of conversations, and what questions were taken for, on both databases.

use crate::*;

on_both!(
    a_summary_only_ever_reaches_further,
    instructions_stay_until_they_are_changed,
    what_a_question_was_taken_for_is_kept_and_told,
);

fn owner(id: &str) -> Owner {
    Owner {
        tenant: TenantScope::internal(tenant("default"), Internal::Test),
        id: id.to_owned(),
    }
}

async fn begin(
    catalog: &Catalog,
    instructions: Option<&str>,
) -> Result<Conversation, CatalogError> {
    catalog
        .create_conversation(&owner("usr_ann"), "t", None, instructions)
        .await
}

async fn a_summary_only_ever_reaches_further(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("usr_ann");
    let id = begin(catalog, None).await.expect("made").id;
    for _ in 0..3 {
        let begun = catalog.begin_answer(&ann, &id, Some("x".into()), "chat");
        begun.await.expect("begun");
    }
    let summary = |text: &str, seq| ConversationSummary {
        text: text.to_owned(),
        seq,
    };
    let keep = async |owner: &Owner, summary: &ConversationSummary| {
        catalog
            .keep_conversation_summary(owner, &id, summary)
            .await
            .expect("asked")
    };
    assert!(keep(&ann, &summary("四句", 4)).await);
    assert!(!keep(&ann, &summary("as far", 4)).await);
    assert!(!keep(&ann, &summary("less far", 2)).await);
    assert!(!keep(&ann, &summary("of what was not said", 7)).await);
    assert!(!keep(&owner("usr_bob"), &summary("another's", 6)).await);
    let found = catalog.conversation_summary(&ann, &id).await;
    assert_eq!(found.expect("asked"), Some(summary("四句", 4)));
    assert!(keep(&ann, &summary("all", 6)).await);
    let bob = catalog.conversation_summary(&owner("usr_bob"), &id).await;
    assert!(matches!(bob, Err(CatalogError::NotFound { .. })), "{bob:?}");
    let long = summary(&"字".repeat(20_001), 6);
    let long = catalog.keep_conversation_summary(&ann, &id, &long).await;
    assert!(matches!(long, Err(CatalogError::Invalid(_))), "{long:?}");
}

async fn instructions_stay_until_they_are_changed(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("usr_ann");
    let made = begin(catalog, Some(" 只用中文\n回答 "))
        .await
        .expect("made");
    assert_eq!(made.instructions.as_deref(), Some("只用中文\n回答"));
    let change = async |title: Option<&str>, instructions: Option<&str>| {
        let change = ConversationChange {
            title,
            instructions,
        };
        catalog.update_conversation(&ann, &made.id, &change).await
    };
    let renamed = change(Some("new"), None).await.expect("changed");
    assert_eq!(renamed.instructions, made.instructions);
    let told = change(None, Some("be brief")).await.expect("changed");
    assert_eq!(
        (told.title.as_str(), told.instructions.as_deref()),
        ("new", Some("be brief"))
    );
    for refused in ["\u{1b}[31m", &"x".repeat(4_001)] {
        let refused = change(None, Some(refused)).await;
        assert!(
            matches!(refused, Err(CatalogError::Invalid(_))),
            "{refused:?}"
        );
    }
    let without = change(None, Some("")).await.expect("changed");
    assert_eq!(without.instructions, None);
}

async fn what_a_question_was_taken_for_is_kept_and_told(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("usr_ann");
    let id = begin(catalog, None).await.expect("made").id;
    let question = NewQuestion {
        content: "我要投诉",
        intent: Some("complaint"),
        sentiment: Some("negative"),
        sentiment_score: Some(-0.5),
        handover_requested: Some(false),
    };
    let begun = catalog.begin_answer(&ann, &id, Some(question), "chat");
    let (asked, answer) = begun.await.expect("begun");
    let asked = asked.expect("a question");
    let stored = catalog.message(&ann, &id, &asked.id).await.expect("there");
    assert_eq!(stored, asked);
    assert_eq!(
        (stored.intent.as_deref(), stored.sentiment.as_deref()),
        (Some("complaint"), Some("negative"))
    );
    assert_eq!((answer.intent, answer.sentiment), (None, None));
    assert_eq!(
        catalog
            .conversation(&ann, &id)
            .await
            .expect("there")
            .last_seq,
        2
    );
    let events = catalog.outbox_all_tenants(10).await.expect("events");
    let told: Vec<_> = events
        .iter()
        .map(|one| (one.event.intent.as_deref(), one.event.sentiment_score))
        .collect();
    assert_eq!(
        told,
        [(None, None), (Some("complaint"), Some(-0.5)), (None, None)]
    );
}
