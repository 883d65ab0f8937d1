//! The embedding models of this process as a provider: vectors, and ranks by how close they are.

use std::sync::Arc;

use async_trait::async_trait;
use va_llm::{
    Call, ChatRequest, EmbedReply, EmbedRequest, ErrorKind, EventStream, InputType, LlmError,
    Provider, Ranked, RerankReply, RerankRequest, Usage,
};
use va_models::{Embedder, Embedders, ModelError, ModelKind, Role};

/// The provider `local`.
#[derive(Debug)]
pub(super) struct LocalModels {
    embedders: Arc<Embedders>,
}

impl LocalModels {
    pub(super) fn new(embedders: Arc<Embedders>) -> Self {
        Self { embedders }
    }

    /// The models that can be fetched and run here.
    pub(super) fn names(&self) -> Vec<String> {
        let models = self.embedders.store().list().into_iter();
        models
            .filter(|model| model.kind == ModelKind::Embedding)
            .map(|model| model.name)
            .collect()
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
    async fn chat(&self, call: Call<'_>, _: &ChatRequest) -> Result<EventStream, LlmError> {
        Err(LlmError::new(
            ErrorKind::Unsupported,
            format!(
                "the local model `{}` makes vectors, not replies",
                call.model
            ),
        ))
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
