//! Conversations, their messages and the outbox, on both databases.

use serde_json::{Value, json};

use crate::*;

on_both!(
    a_conversation_is_its_owners_alone,
    a_conversation_begins_with_its_question_or_not_at_all,
    an_answer_is_begun_saved_and_finished_once,
    whatever_is_written_waits_in_the_outbox,
    titles_and_messages_are_searched,
    answers_of_a_dead_process_are_ended,
);

fn owner(tenant_name: &str, id: &str) -> Owner {
    Owner {
        tenant: TenantScope::internal(tenant(tenant_name), Internal::Test),
        id: id.to_owned(),
    }
}

fn title(title: &str) -> ConversationChange<'_> {
    ConversationChange {
        title: Some(title),
        ..ConversationChange::default()
    }
}

fn is_not_found<T: std::fmt::Debug>(result: Result<T, CatalogError>) {
    let error = result.expect_err("it is not there");
    assert!(matches!(error, CatalogError::NotFound { .. }), "{error}");
}

async fn finish(
    catalog: &Catalog,
    owner: &Owner,
    conversation: &str,
    id: &str,
    content: &str,
    reason: Option<&str>,
) -> Result<(), CatalogError> {
    let finished = FinishedAnswer {
        content,
        reason,
        citations: &json!([{"n": 1}]),
        usage: &json!({"total_tokens": 7}),
    };
    catalog
        .finish_answer(owner, conversation, id, &finished)
        .await
}

async fn a_conversation_is_its_owners_alone(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let b = tenant("乙");
    catalog.create_tenant(&b, "").await.expect("a tenant");
    let ann = owner("default", "usr_ann");
    let made = catalog
        .create_conversation(&ann, " 冻结行 ", None, None)
        .await
        .expect("made");
    let id = made.id.as_str();
    assert_eq!((made.title.as_str(), made.created_at), ("冻结行", 1_000));
    let (_, answer) = catalog
        .begin_answer(&ann, id, Some("如何?".into()), "chat")
        .await
        .expect("begun");
    for other in [owner("default", "usr_bob"), owner("乙", "usr_ann")] {
        is_not_found(catalog.conversation(&other, id).await);
        is_not_found(catalog.update_conversation(&other, id, &title("x")).await);
        is_not_found(catalog.delete_conversation(&other, id).await);
        is_not_found(catalog.messages(&other, id, &Page::default()).await);
        is_not_found(catalog.message(&other, id, &answer.id).await);
        is_not_found(
            catalog
                .begin_answer(&other, id, Some("x".into()), "chat")
                .await,
        );
        let feedback = catalog.set_feedback(&other, id, &answer.id, Feedback::Up, None);
        is_not_found(feedback.await);
        let listed = catalog.conversations(&other, None, &Page::default()).await;
        assert!(listed.expect("a list").items.is_empty());
    }
    let renamed = catalog
        .update_conversation(&ann, id, &title("新名字"))
        .await;
    assert_eq!(renamed.expect("renamed").title, "新名字");
    let long = "字".repeat(201);
    let refused = catalog.update_conversation(&ann, id, &title(&long)).await;
    let refused = refused.expect_err("too long");
    assert!(matches!(refused, CatalogError::Invalid(_)), "{refused}");
    catalog.delete_conversation(&ann, id).await.expect("gone");
    is_not_found(catalog.conversation(&ann, id).await);
    is_not_found(catalog.delete_conversation(&ann, id).await);
}

async fn a_conversation_begins_with_its_question_or_not_at_all(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("default", "usr_ann");
    let new = NewConversation {
        title: " 冻结行 ",
        collection: None,
        instructions: Some("be brief"),
    };
    let (id, question, answer) = catalog
        .begin_conversation(&ann, &new, Some("如何?".into()), "rag")
        .await
        .expect("begun");
    let made = catalog.conversation(&ann, &id).await.expect("it is there");
    assert_eq!(
        (made.title.as_str(), made.instructions.as_deref()),
        ("冻结行", Some("be brief"))
    );
    assert_eq!(made.last_seq, 2);
    let question = question.expect("a question");
    assert_eq!((question.seq, answer.seq), (1, 2));
    let messages = catalog.messages(&ann, &id, &Page::default()).await;
    let messages = messages.expect("messages").items;
    let ids: Vec<&str> = messages.iter().map(|message| message.id.as_str()).collect();
    assert_eq!(ids, [question.id.as_str(), answer.id.as_str()]);

    let long = "字".repeat(4_001);
    let bad = NewConversation {
        instructions: Some(&long),
        ..new
    };
    let refused = catalog
        .begin_conversation(&ann, &bad, Some("x".into()), "rag")
        .await
        .expect_err("too long");
    assert!(matches!(refused, CatalogError::Invalid(_)), "{refused}");
    let listed = catalog.conversations(&ann, None, &Page::default()).await;
    assert_eq!(listed.expect("a list").items.len(), 1);
}

async fn an_answer_is_begun_saved_and_finished_once(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("default", "usr_ann");
    let made = catalog.create_conversation(&ann, "t", None, None).await;
    let id = made.expect("made").id;
    let (question, answer) = catalog
        .begin_answer(&ann, &id, Some("问?".into()), "rag")
        .await
        .expect("begun");
    let question = question.expect("a new question");
    assert_eq!((question.seq, answer.seq), (1, 2));
    assert_eq!(answer.state, MessageState::Writing);
    catalog
        .save_answer_so_far(&ann, &id, &answer.id, "半")
        .await
        .expect("saved");
    let so_far = catalog.message(&ann, &id, &answer.id).await;
    assert_eq!(so_far.expect("there").content, "半");
    finish(catalog, &ann, &id, &answer.id, "半个", Some("stopped"))
        .await
        .expect("finished");
    is_not_found(finish(catalog, &ann, &id, &answer.id, "twice", None).await);
    catalog
        .save_answer_so_far(&ann, &id, &answer.id, "late")
        .await
        .expect("passed over");
    let ended = catalog.message(&ann, &id, &answer.id).await.expect("there");
    assert_eq!(ended.content, "半个");
    assert_eq!(ended.state, MessageState::Partial);
    assert_eq!(ended.reason.as_deref(), Some("stopped"));
    assert_eq!(ended.usage["total_tokens"], json!(7));
    assert_eq!(ended.citations[0]["n"], json!(1));

    // Once more, without a new question.
    let (question, again) = catalog
        .begin_answer(&ann, &id, None, "rag")
        .await
        .expect("begun");
    assert_eq!((question, again.seq), (None, 3));
    finish(catalog, &ann, &id, &again.id, "一个", None)
        .await
        .expect("finished");
    let liked = catalog
        .set_feedback(&ann, &id, &again.id, Feedback::Down, Some("太短"))
        .await
        .expect("noted");
    assert_eq!(liked.feedback, Some(Feedback::Down));
    assert_eq!(liked.feedback_comment.as_deref(), Some("太短"));
    let last = catalog.last_messages(&ann, &id, 2).await.expect("two");
    assert_eq!(last.iter().map(|m| m.seq).collect::<Vec<_>>(), [2, 3]);

    // Pages, and what comes meanwhile is on the last.
    let first = catalog.messages(&ann, &id, &Page::first(2)).await;
    let first = first.expect("a page");
    let page = Page {
        limit: 2,
        cursor: first.next,
    };
    let second = catalog.messages(&ann, &id, &page).await.expect("a page");
    assert_eq!(first.items.len() + second.items.len(), 3);
    assert_eq!((second.items[0].seq, second.next), (3, None));
}

async fn whatever_is_written_waits_in_the_outbox(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("default", "usr_ann");
    let made = catalog.create_conversation(&ann, "t", None, None).await;
    let id = made.expect("made").id;
    let (_, answer) = catalog
        .begin_answer(&ann, &id, Some("secret words".into()), "chat")
        .await
        .expect("begun");
    finish(catalog, &ann, &id, &answer.id, "五个汉字。", None)
        .await
        .expect("finished");
    let feedback = catalog.set_feedback(&ann, &id, &answer.id, Feedback::Up, None);
    feedback.await.expect("noted");
    // What fails leaves no event.
    is_not_found(finish(catalog, &ann, &id, &answer.id, "x", None).await);
    catalog.delete_conversation(&ann, &id).await.expect("gone");

    let events = catalog.outbox_all_tenants(100).await.expect("events");
    let told: Vec<_> = events
        .iter()
        .map(|one| (one.event.kind, one.event.role.as_deref(), one.event.chars))
        .collect();
    assert_eq!(
        told,
        [
            (EventKind::Created, None, None),
            (EventKind::Created, Some("user"), Some(12)),
            (EventKind::Created, Some("assistant"), Some(0)),
            (EventKind::Finished, Some("assistant"), Some(5)),
            (EventKind::Feedback, Some("assistant"), None),
            (EventKind::Deleted, None, None),
        ]
    );
    assert!(!format!("{events:?}").contains("secret"), "{events:?}");
    let sent: Vec<String> = events[..5].iter().map(|one| one.id.clone()).collect();
    for _ in 0..2 {
        catalog.sent_all_tenants(&sent).await.expect("forgotten");
    }
    let left = catalog.outbox_all_tenants(100).await.expect("events");
    assert_eq!(left, events[5..]);
}

async fn titles_and_messages_are_searched(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("default", "usr_ann");
    let mut ids = Vec::new();
    for (title, question) in [
        ("表格", "如何冻结第一行?"),
        ("Straße", "ÄPFEL und Birnen"),
        ("100%_sure!", "nothing"),
    ] {
        let made = catalog.create_conversation(&ann, title, None, None).await;
        let id = made.expect("made").id;
        let begun = catalog.begin_answer(&ann, &id, Some(question.into()), "chat");
        begun.await.expect("begun");
        ids.push(id);
    }
    for (search, expected) in [
        ("冻结", vec![0]),
        ("表", vec![0]),
        ("äpfel", vec![1]),
        ("STRASSE", vec![]),
        ("%_", vec![2]),
        ("sure!", vec![2]),
        ("_", vec![2]),
        ("' OR '1'='1", vec![]),
        ("n", vec![2, 1]),
    ] {
        let found = catalog
            .conversations(&ann, Some(search), &Page::default())
            .await
            .expect("found");
        let found: Vec<_> = found.items.into_iter().map(|one| one.id).collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|at: usize| ids[at].clone())
            .collect();
        assert_eq!(found, expected, "{search}");
    }
    // All of them, newest first, page by page.
    let mut listed = Vec::new();
    let mut page = Page::first(2);
    loop {
        let listing = catalog.conversations(&ann, None, &page).await;
        let listing = listing.expect("a page");
        listed.extend(listing.items.into_iter().map(|one| one.id));
        match listing.next {
            Some(next) => page.cursor = Some(next),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!(listed, ids);
}

async fn answers_of_a_dead_process_are_ended(on: On) {
    let bench = Bench::new(on).await;
    let catalog = &bench.catalog;
    let ann = owner("default", "usr_ann");
    let made = catalog.create_conversation(&ann, "t", None, None).await;
    let id = made.expect("made").id;
    let (_, old) = catalog
        .begin_answer(&ann, &id, Some("a".into()), "chat")
        .await
        .expect("begun");
    let saved = catalog.save_answer_so_far(&ann, &id, &old.id, "so far");
    saved.await.expect("saved");
    bench.clock.store(2_000, Ordering::SeqCst);
    let (_, new) = catalog
        .begin_answer(&ann, &id, Some("b".into()), "chat")
        .await
        .expect("begun");
    let ended = catalog.end_abandoned_answers_all_tenants(1_000, "gone");
    assert_eq!(ended.await.expect("ended"), 1);
    let old = catalog.message(&ann, &id, &old.id).await.expect("there");
    assert_eq!(
        (old.state, old.content.as_str()),
        (MessageState::Partial, "so far")
    );
    assert_eq!(
        (old.reason.as_deref(), old.usage),
        (Some("gone"), Value::Null)
    );
    let new = catalog.message(&ann, &id, &new.id).await.expect("there");
    assert_eq!(new.state, MessageState::Writing);
}
