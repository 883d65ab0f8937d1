//! The models of this process as a provider: vectors, ranks by how close they are, and replies (`chat`).

mod chat;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chat::Chats;
use va_catalog::settings::llm::{
    Capability, DeploymentSettings, LOCAL_PROVIDER, LlmModelSettings, LocalModelSettings, ModelUse,
};
use va_llm::{
    Call, ChatRequest, EmbedReply, EmbedRequest, ErrorKind, EventStream, InputType, LlmError,
    Provider, Ranked, RerankReply, RerankRequest, Usage,
};
use va_models::{
    ChatTokenizer, Embedder, Embedders, ModelError, ModelInfo, ModelKind, ModelState, Role,
};

/// The longest reply of a request that names no limit: small models may go on for ever.
const OUTPUT_TOKENS_MAX: NonZeroU32 = const { NonZeroU32::new(2_048).expect("not zero") };

/// The provider `local`.
#[derive(Debug)]
pub(super) struct LocalModels {
    embedders: Arc<Embedders>,
    chats: Chats,
    context_tokens: NonZeroU32,
}

impl LocalModels {
    pub(super) fn new(embedders: Arc<Embedders>, settings: &LocalModelSettings) -> Self {
        Self {
            chats: Chats::new(embedders.store().clone(), settings),
            context_tokens: settings.context_tokens,
            embedders,
        }
    }

    /// The models that can be fetched and run here, as the gateway offers them.
    pub(super) fn models(&self) -> Vec<(String, LlmModelSettings)> {
        let models = self.embedders.store().list().into_iter();
        models
            .filter_map(|model| Some((model.name.clone(), self.offered(&model)?)))
            .collect()
    }

    /// The embedding models that can be fetched and run here.
    pub(super) fn embedding_names(&self) -> Vec<String> {
        let models = self.embedders.store().list().into_iter();
        models
            .filter(|model| model.kind == ModelKind::Embedding)
            .map(|model| model.name)
            .collect()
    }

    fn offered(&self, model: &ModelInfo) -> Option<LlmModelSettings> {
        let deployment = DeploymentSettings::at(LOCAL_PROVIDER);
        let (used_for, deployment) = match model.kind {
            ModelKind::Embedding => (ModelUse::Embedding, deployment),
            ModelKind::Chat => {
                let own = u32::try_from(model.max_tokens).ok();
                let context = own
                    .and_then(NonZeroU32::new)
                    .map_or(self.context_tokens, |own| own.min(self.context_tokens));
                let tools = model.tools.then_some(Capability::Tools);
                let deployment = DeploymentSettings {
                    context_tokens: Some(context),
                    output_tokens_max: Some(OUTPUT_TOKENS_MAX),
                    capabilities: Some(tools.into_iter().collect()),
                    ..deployment
                };
                (ModelUse::Chat, deployment)
            }
            _ => return None,
        };
        Some(LlmModelSettings {
            used_for,
            deployments: vec![deployment],
            ..LlmModelSettings::default()
        })
    }

    /// The language models that can be fetched, but are not here. Asking one tells how to fetch it.
    pub(super) fn absent_chats(&self) -> Vec<String> {
        let models = self.embedders.store().list().into_iter();
        models
            .filter(|model| model.kind == ModelKind::Chat && model.state != ModelState::Ready)
            .map(|model| model.name)
            .collect()
    }

    /// The tokenizer of a language model. Blocks.
    pub(super) fn tokenizer(&self, model: &str) -> Result<ChatTokenizer, ModelError> {
        self.chats.generators().tokenizer(model)
    }

    /// Drops language models that nobody asked for within `idle`; returns how many. Blocks.
    pub(super) fn unload_idle(&self, idle: Duration) -> usize {
        self.chats.generators().unload_idle(idle)
    }

    /// Loading and running a model block, so they have a thread of their own.
    async fn run<T: Send + 'static>(
        &self,
        model: &str,
        work: impl FnOnce(&dyn Embedder) -> Result<T, ModelError> + Send + 'static,
    ) -> Result<T, LlmError> {
        let embedders = self.embedders.clone();
        let name = model.to_owned();
        let done = tokio::task::spawn_blocking(move || {
            let embedder = embedders.get(&name)?;
            work(embedder.as_ref())
        });
        match done.await {
            Ok(done) => done.map_err(|error| failed(&error)),
            Err(error) => Err(LlmError::new(ErrorKind::Unavailable, error.to_string())),
        }
    }
}

fn failed(error: &ModelError) -> LlmError {
    let kind = match error {
        ModelError::Unknown { .. } => ErrorKind::UnknownModel,
        ModelError::TooLong { .. } => ErrorKind::ContextWindow,
        // Repeating the call would not fetch the model.
        _ => ErrorKind::Unsupported,
    };
    LlmError::new(kind, error.to_string())
}

fn counted(embedder: &dyn Embedder, texts: &[String]) -> Usage {
    let tokens = texts.iter().map(|text| embedder.tokenizer().count(text));
    Usage {
        input: tokens.sum::<usize>() as u64,
        ..Usage::default()
    }
}

fn embed(
    embedder: &dyn Embedder,
    texts: &[String],
    role: Role,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    embedder.embed(&texts, role)
}

#[async_trait]
impl Provider for LocalModels {
    async fn chat(&self, call: Call<'_>, request: &ChatRequest) -> Result<EventStream, LlmError> {
        self.chats.chat(call, request).await
    }

    async fn embed(&self, call: Call<'_>, request: &EmbedRequest) -> Result<EmbedReply, LlmError> {
        let texts = request.texts.clone();
        let role = match request.input_type {
            InputType::Query => Role::Query,
            InputType::Passage => Role::Passage,
        };
        let (dims, vectors, usage) = self
            .run(call.model, move |embedder| {
                let vectors = embed(embedder, &texts, role)?;
                Ok((embedder.dims(), vectors, counted(embedder, &texts)))
            })
            .await?;
        if let Some(dimensions) = request.dimensions
            && dimensions as usize != dims
        {
            return Err(LlmError::bad(format!(
                "`dimensions` is {dimensions}, but the vectors of `{}` have {dims}: leave it out",
                call.model
            )));
        }
        Ok(EmbedReply { vectors, usage })
    }

    async fn rerank(
        &self,
        call: Call<'_>,
        request: &RerankRequest,
    ) -> Result<RerankReply, LlmError> {
        let (query, documents) = (request.query.clone(), request.documents.clone());
        let (scores, usage) = self
            .run(call.model, move |embedder| {
                let query = [query];
                let near = embed(embedder, &query, Role::Query)?;
                let vectors = embed(embedder, &documents, Role::Passage)?;
                let near = near.first().map_or(&[][..], Vec::as_slice);
                // The vectors have length 1, so this is the cosine.
                let scores: Vec<f64> = vectors
                    .iter()
                    .map(|vector| {
                        let products = vector.iter().zip(near).map(|(a, b)| a * b);
                        f64::from(products.sum::<f32>())
                    })
                    .collect();
                let mut usage = counted(embedder, &documents);
                usage.input += counted(embedder, &query).input;
                Ok((scores, usage))
            })
            .await?;
        let mut ranked: Vec<Ranked> = scores
            .into_iter()
            .enumerate()
            .map(|(index, score)| Ranked { index, score })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(RerankReply { ranked, usage })
    }
}
