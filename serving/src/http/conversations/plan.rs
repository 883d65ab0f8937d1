//! Who answers a message, what it is told of the conversation and of whoever asks, and why that is not quite what was asked for.

use axum::http::StatusCode;
use serde_json::{Value, json};
use va_catalog::store::{Conversation, Owner, Principal};
use va_catalog::{CollectionName, Filter};

use crate::conversations::{
    Context, ContextStrategy, Mode, Profile, Understood, Wanted, Work, about, recall,
};
use crate::http::rag::writer;
use crate::http::{App, Problem, RequestId};
use crate::rag::{Lang, Mode as RagMode, RagRequest, Turn, check};

/// How an answer is to be made.
pub(super) struct How {
    pub mode: Option<Mode>,
    pub model: Option<String>,
    pub context: ContextStrategy,
    /// Where is searched.
    pub collection: Option<CollectionName>,
    /// Of the conversation.
    pub instructions: Option<String>,
}

/// What there is to do for an answer.
pub(super) struct Plan {
    pub mode: Mode,
    pub work: Work,
    /// Why it is not quite what was asked for.
    pub degraded: Vec<Value>,
}

/// Plans the answer to a question; `told` is the conversation that it is asked in, and the last message that is told of it.
pub(super) async fn plan(
    app: &App,
    principal: &Principal,
    id: &RequestId,
    how: &How,
    question: &str,
    understood: &Understood,
    told: Option<(&Conversation, i64)>,
) -> Result<Plan, Problem> {
    let strategy = how.context.check().map_err(Problem::invalid)?;
    let gateway = &app.platform.gateway;
    let model = how.model.as_deref().or(gateway.default_model());
    let model = model.filter(|_| gateway.is_configured());
    let wanted = how.mode.unwrap_or_else(|| {
        let has_documents = how.collection.is_some();
        Mode::choose(question, understood.intent, has_documents, model.is_some())
    });
    let mut degraded = Vec::new();
    if wanted == Mode::Agent {
        degraded.push(json!({
            "retriever": "agent",
            "reason": "there are no agents yet: it is answered from documents, or else by a model alone",
        }));
    }
    let collection = how.collection.as_ref().filter(|_| wanted != Mode::Chat);
    if collection.is_none() && wanted == Mode::Rag {
        degraded.push(json!({
            "retriever": "collection",
            "reason": "no `collection` is named to search in: a model answers by itself",
        }));
    }
    let by = match (collection, model) {
        (Some(collection), _) => By::Documents(collection),
        (None, Some(model)) => By::Model(model),
        (None, None) => {
            return Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_provider",
                "no model provider is configured, or none is named in `model` or `llm.default_model` \
                 (docs/gateway.md); name a `collection` to be answered with sentences of its documents",
            ));
        }
    };
    let caller = gateway.caller(principal, &id.0);
    let context = match told {
        None => Context::default(),
        Some((conversation, upto)) => {
            let wanted = Wanted {
                platform: &app.platform,
                owner: &Owner::from(principal),
                conversation,
                upto,
                strategy,
                viewer: principal.viewer(),
                model: model.map(|model| (&caller, model)),
            };
            recall(&wanted).await?
        }
    };
    degraded.extend(context.degraded);
    let (profile, trouble) = Profile::of(&app.platform, principal).await;
    degraded.extend(trouble);
    let about = about(
        Lang::of(question),
        how.instructions.as_deref(),
        &profile,
        context.summary.as_deref(),
    );
    let (mode, work) = match by {
        By::Documents(collection) => {
            let told = Told {
                history: context.history,
                about,
                language: profile.lang(),
            };
            let work = from_documents(app, principal, id, how, question, collection, told).await?;
            (Mode::Rag, work)
        }
        By::Model(model) => {
            let work = Work::Chat {
                caller: Box::new(caller),
                model: model.to_owned(),
                about,
                history: context.history,
                question: question.to_owned(),
            };
            (Mode::Chat, work)
        }
    };
    Ok(Plan {
        mode,
        work,
        degraded,
    })
}

/// Who answers.
enum By<'a> {
    Documents(&'a CollectionName),
    Model(&'a str),
}

/// What a writer is told besides the question, and the language of our own phrases.
struct Told {
    history: Vec<Turn>,
    about: Option<String>,
    language: Option<Lang>,
}

async fn from_documents(
    app: &App,
    principal: &Principal,
    id: &RequestId,
    how: &How,
    question: &str,
    collection: &CollectionName,
    told: Told,
) -> Result<Work, Problem> {
    let request = RagRequest {
        question: question.to_owned(),
        collection: collection.clone(),
        k: None,
        filter: Filter::default(),
        history: last(told.history),
        context_tokens: None,
        min_freshness: None,
        freshness_timeout_ms: None,
        allow_stale: false,
        stream: true,
        explain: false,
        mode: RagMode::Auto,
        model: how.model.clone(),
        rerank: None,
        rewrite: None,
        hyde: None,
    };
    let mut ask = request
        .check(principal.viewer())
        .map_err(Problem::invalid)?;
    ask.language = told.language;
    let asked = check(&app.platform, &principal.tenant, ask).await?;
    let writer = writer(app, principal, id, &asked.ask, told.about)?;
    Ok(Work::Rag {
        caller: Box::new(app.platform.gateway.caller(principal, &id.0)),
        asked: Box::new(asked),
        writer,
    })
}

/// Answers from documents look at the last turns only, and take no more than these.
const RAG_TURNS_MAX: usize = 100;

fn last(mut history: Vec<Turn>) -> Vec<Turn> {
    let from = history.len().saturating_sub(RAG_TURNS_MAX);
    history.split_off(from)
}
