//! Replies that are given again: to the same request, and to a question that means the same.
//!
//! Where replies are kept is the platform's [`Cache`]; under which name is `key`'s business, and `index` finds what means
//! the same. Of each tenant its own, and nobody is answered who could not have asked the model. What fails here costs a
//! call of the model and no more: it is counted, told in the log, and the call goes on.
//!
//! Kept are replies that came to their end from the model that was asked for; not those of a stand-in, refusals, and what
//! the provider stopped. They are the events as they came, so a stream from here reads as the first one did.

mod index;
mod key;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use va_catalog::TenantId;
use va_catalog::settings::llm::{ReplyCacheSettings, SemanticCacheSettings};
use va_connectors::cache::{Cache, CacheKey};
use va_llm::{ChatRequest, ChatStream, Event, FinishReason, LlmError, RouteInfo};
use va_models::{Embedders, Role};

use self::index::{Index, Meaning};
use self::key::Question;
use crate::platform::now_ms;

/// The largest reply that is kept.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// How long the cache may take to answer; a model is asked when it takes longer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a request wants of the caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheWish {
    #[default]
    Use,
    /// A new reply, which is kept.
    Refresh,
    /// A new reply, which is not kept.
    Bypass,
}

/// The caches of replies, as the settings have them.
pub(super) struct ReplyCache {
    cache: Arc<dyn Cache>,
    /// How long replies to the same request live.
    exact: Option<Duration>,
    semantic: Option<Semantic>,
}

struct Semantic {
    life: Duration,
    similarity: f32,
    model: String,
    embedders: Arc<Embedders>,
    index: Mutex<Index>,
}

/// A reply that is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Who gave it.
    deployment: String,
    events: Vec<Event>,
}

/// What looking for a reply brought.
pub(super) enum Looked {
    /// A reply, and which cache had it.
    Found(ChatStream, &'static str),
    /// None; where a new one is to be kept.
    Nothing(Keep),
}

/// Where a reply is to be kept.
pub(super) struct Keep {
    tenant: TenantId,
    exact: Option<CacheKey>,
    semantic: Option<(CacheKey, Meaning)>,
}

impl ReplyCache {
    pub(super) fn new(
        settings: &ReplyCacheSettings,
        cache: Arc<dyn Cache>,
        embedders: Arc<Embedders>,
        known: &[String],
    ) -> Result<Self, String> {
        let semantic = &settings.semantic;
        if semantic.enabled {
            check_model(semantic, known)?;
        }
        Ok(Self {
            cache,
            exact: settings
                .exact
                .enabled
                .then(|| Duration::from_secs(settings.exact.life_seconds)),
            semantic: semantic.enabled.then(|| Semantic {
                life: Duration::from_secs(semantic.life_seconds),
                similarity: semantic.similarity.as_f32(),
                model: semantic.model.clone(),
                embedders,
                index: Mutex::new(Index::new(
                    usize::try_from(semantic.entries_max).unwrap_or(usize::MAX),
                )),
            }),
        })
    }

    pub(super) fn is_on(&self) -> bool {
        self.exact.is_some() || self.semantic.is_some()
    }

    /// Looks for a reply to this request to `model`, which the caller may ask.
    pub(super) async fn look(
        &self,
        tenant: &TenantId,
        model: &str,
        request: &ChatRequest,
        wish: CacheWish,
    ) -> Looked {
        let mut keep = Keep {
            tenant: tenant.clone(),
            exact: None,
            semantic: None,
        };
        if self.exact.is_some()
            && let Some(key) = key::exact(tenant, model, request)
        {
            if wish == CacheWish::Use
                && let Some(kept) = self.get(&key, "exact").await
            {
                return Looked::Found(given(kept, "exact"), "exact");
            }
            keep.exact = Some(key);
        }
        if let Some(semantic) = &self.semantic
            && let Some(question) = key::question(model, request)
            && let Some(meaning) = semantic.meaning(question).await
        {
            let near =
                semantic
                    .index()
                    .nearest(tenant.as_str(), &meaning, semantic.similarity, now_ms());
            if wish == CacheWish::Use
                && let Some(near) = near
            {
                match self.get(&near, "semantic").await {
                    Some(kept) => return Looked::Found(given(kept, "semantic"), "semantic"),
                    // The cache let go of it early.
                    None => semantic.index().forget(tenant.as_str(), &near),
                }
            } else if wish == CacheWish::Use {
                count("semantic", "miss");
            }
            let key = key::similar(tenant, &meaning);
            keep.semantic = Some((key, meaning));
        }
        Looked::Nothing(keep)
    }

    /// The stream, listened in on, so that its reply is kept when it has come to its end.
    pub(super) fn listen(self: &Arc<Self>, stream: ChatStream, keep: Keep) -> ChatStream {
        let (mut info, events) = stream.into_parts();
        info.cache = Some("miss");
        if info.fell_back {
            return ChatStream::made(info, events);
        }
        let listening = Listening {
            cache: self.clone(),
            deployment: info.deployment.clone(),
            events,
            heard: Vec::new(),
            bytes: 0,
            keep: Some(keep),
            finish: None,
        };
        let events = futures::stream::unfold(listening, |mut listening| async move {
            match listening.events.next().await {
                Some(Ok(event)) => {
                    listening.hear(&event);
                    Some((Ok(event), listening))
                }
                Some(Err(error)) => {
                    listening.keep = None;
                    Some((Err(error), listening))
                }
                None => {
                    listening.end().await;
                    None
                }
            }
        });
        ChatStream::made(info, events.boxed())
    }

    async fn get(&self, key: &CacheKey, kind: &'static str) -> Option<Kept> {
        let found = match tokio::time::timeout(PATIENCE, self.cache.get(key)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return failed(kind, "read a kept reply", &error),
            Err(_) => return failed(kind, "read a kept reply", &"it took too long"),
        };
        let Some(bytes) = found else {
            count(kind, "miss");
            return None;
        };
        match serde_json::from_slice(&bytes) {
            Ok(kept) => {
                count(kind, "hit");
                Some(kept)
            }
            // Of another version of this program.
            Err(error) => failed(kind, "understand a kept reply", &error),
        }
    }

    async fn put(&self, key: &CacheKey, kept: &Bytes, life: Duration, kind: &'static str) -> bool {
        let put = self.cache.put(key, kept.clone(), life);
        match tokio::time::timeout(PATIENCE, put).await {
            Ok(Ok(())) => {
                count(kind, "stored");
                true
            }
            Ok(Err(error)) => failed::<()>(kind, "keep a reply", &error).is_some(),
            Err(_) => failed::<()>(kind, "keep a reply", &"it took too long").is_some(),
        }
    }
}

/// A model that is neither known nor a folder would fail each look.
fn check_model(settings: &SemanticCacheSettings, known: &[String]) -> Result<(), String> {
    let model = &settings.model;
    if known.contains(model) || Path::new(model).is_dir() {
        return Ok(());
    }
    Err(format!(
        "`llm.cache.semantic.model` is `{model}`, which is no embedding model of this process: use {}, or the folder of \
         one of your own",
        known.join(", ")
    ))
}

impl Semantic {
    /// The index. A panic elsewhere leaves it usable: each change is one call.
    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the question means; `None` when it is too long to be told, or cannot be.
    async fn meaning(&self, question: Question) -> Option<Meaning> {
        let (embedders, model) = (self.embedders.clone(), self.model.clone());
        let text = question.text.clone();
        let embedded = tokio::task::spawn_blocking(move || {
            let embedder = embedders.get(&model)?;
            // What the model does not read must not be taken for the same.
            if embedder.tokenizer().count(&text) > embedder.passage_tokens() {
                return Ok(None);
            }
            let vectors = embedder.embed(&[text.as_str()], Role::Query)?;
            Ok::<_, va_models::ModelError>(vectors.into_iter().next())
        });
        match embedded.await {
            Ok(Ok(vector)) => Some(Meaning::new(question, vector?)),
            Ok(Err(error)) => failed("semantic", "understand a question", &error),
            Err(error) => failed("semantic", "understand a question", &error),
        }
    }
}

/// A kept reply as if it came.
fn given(kept: Kept, how: &'static str) -> ChatStream {
    let info = RouteInfo {
        deployment: kept.deployment,
        cache: Some(how),
        ..RouteInfo::default()
    };
    ChatStream::made(
        info,
        futures::stream::iter(kept.events.into_iter().map(Ok)).boxed(),
    )
}

fn count(kind: &'static str, outcome: &'static str) {
    metrics::counter!("va_llm_cache_total", "kind" => kind, "outcome" => outcome).increment(1);
}

/// Tells of a failure that costs no more than a call.
fn failed<T>(kind: &'static str, doing: &'static str, error: &dyn std::fmt::Display) -> Option<T> {
    count(kind, "error");
    tracing::warn!(
        kind,
        "{doing}: {error}; the model is asked as if there were no cache"
    );
    None
}

/// A reply on its way, and what has been heard of it.
struct Listening {
    cache: Arc<ReplyCache>,
    deployment: String,
    events: BoxStream<'static, Result<Event, LlmError>>,
    heard: Vec<Event>,
    bytes: usize,
    /// `None` when the reply is not to be kept.
    keep: Option<Keep>,
    finish: Option<FinishReason>,
}

impl Listening {
    fn hear(&mut self, event: &Event) {
        if self.keep.is_none() {
            return;
        }
        self.bytes += match event {
            Event::Text { text, .. } | Event::Reasoning { text, .. } => text.len(),
            Event::ToolCall { arguments, .. } => arguments.len(),
            Event::Refusal(_) => REPLY_BYTES_MAX,
            Event::Finish { reason, .. } => {
                self.finish = Some(*reason);
                0
            }
            Event::Start { .. } | Event::Usage(_) => 0,
        };
        if self.bytes >= REPLY_BYTES_MAX {
            self.keep = None;
            self.heard = Vec::new();
            return;
        }
        self.heard.push(event.clone());
    }

    /// Keeps what was heard, if it is a whole reply. Done before the stream ends, so that whoever has seen its end finds it.
    async fn end(&mut self) {
        let (Some(keep), Some(finish)) = (self.keep.take(), self.finish) else {
            return;
        };
        if finish == FinishReason::ContentFilter {
            return;
        }
        let kept = Kept {
            deployment: std::mem::take(&mut self.deployment),
            events: std::mem::take(&mut self.heard),
        };
        let kept = match serde_json::to_vec(&kept) {
            Ok(kept) => Bytes::from(kept),
            Err(error) => {
                let _: Option<()> = failed("exact", "write down a reply", &error);
                return;
            }
        };
        if let (Some(key), Some(life)) = (&keep.exact, self.cache.exact) {
            self.cache.put(key, &kept, life, "exact").await;
        }
        // What was cut at its length says less than it might to another question.
        if finish == FinishReason::Stop
            && let (Some((key, meaning)), Some(semantic)) = (keep.semantic, &self.cache.semantic)
            && self.cache.put(&key, &kept, semantic.life, "semantic").await
        {
            let now = now_ms();
            let life = i64::try_from(semantic.life.as_millis()).unwrap_or(i64::MAX / 4);
            semantic.index().remember(
                keep.tenant.as_str(),
                meaning,
                key,
                now.saturating_add(life),
                now,
            );
        }
    }
}
