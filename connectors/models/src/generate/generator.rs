//! A loaded language model: from a conversation to a reply, piece by piece.
//!
//! Works on threads of its own, as many as the processor has (`VA_MODEL_THREADS` limits them), so that a long reply holds up
//! neither embeddings nor an async runtime. What earlier conversations came to is kept, so that the next turn of one costs
//! its new tokens only. Blocks the caller, tells it each piece, and asks it after each token whether to go on. Leaves
//! queues, and how many replies are made at a time, to the caller.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::Value;

use super::calls::{Calls, Piece};
use super::gguf::Gguf;
use super::network::{Cache, Network};
use super::output::Output;
use super::sample::{GenerateOptions, Sampler};
use super::template::Template;
use super::vocabulary::{Guarded, Vocabulary};
use crate::error::ModelError;
use crate::files::map_file;
use crate::workers::thread_count;

/// The file of a model.
const FILE: &str = "model.gguf";
/// Tokens of a prompt between two looks at whether the caller still wants the reply.
const PIECE_TOKENS: usize = 64;

/// How models are loaded.
#[derive(Debug, Clone, Copy)]
pub struct GeneratorOptions {
    /// Most tokens of a conversation and its reply, where the model itself holds more.
    pub context_tokens: usize,
    /// Conversations that are kept in memory for their next turn.
    pub conversations: usize,
}

/// Why a reply ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it.
    Complete,
    /// One of the stop texts, which is not part of it.
    Stop(String),
    /// It is as long as it may be.
    Length,
    /// The caller wants no more.
    Cancelled,
}

/// What a reply took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    pub ending: Ending,
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Of these, known from an earlier prompt.
    pub cached_tokens: usize,
    /// Tokens that the model made, the one that ends the reply among them.
    pub output_tokens: usize,
}

/// A loaded language model. Calls may come from many threads at once.
#[derive(Debug)]
pub struct Generator {
    name: String,
    network: Network,
    vocabulary: Arc<Vocabulary>,
    template: Template,
    context: usize,
    pool: ThreadPool,
    /// Of conversations that nobody is working on, oldest first.
    caches: Mutex<Vec<Cache>>,
    conversations: usize,
}

/// The words of a language model, for counting.
#[derive(Debug, Clone)]
pub struct ChatTokenizer(pub(super) Arc<Vocabulary>);

impl ChatTokenizer {
    /// Loads the words of the model in `dir`, and nothing else of it.
    pub(super) fn load(dir: &Path) -> Result<Self, ModelError> {
        let file = map_file(&dir.join(FILE))?;
        let gguf = Gguf::read(&file)?;
        Ok(Self(Arc::new(Vocabulary::read(&gguf)?)))
    }

    /// How many tokens the text has, without those that frame messages.
    ///
    /// # Errors
    /// When the tokenizer fails, which no text is known to bring about.
    pub fn count(&self, text: &str) -> Result<usize, ModelError> {
        self.0.count(text)
    }

    /// The tokens of the text. What looks like a special token in it is text.
    ///
    /// # Errors
    /// As [`count`](Self::count).
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.0.spell(text)
    }
}

impl Generator {
    /// Loads the model in `dir`.
    pub(super) fn load(
        name: &str,
        dir: &Path,
        options: GeneratorOptions,
    ) -> Result<Self, ModelError> {
        let started = std::time::Instant::now();
        let file = map_file(&dir.join(FILE))?;
        let gguf = Gguf::read(&file)?;
        let network = Network::read(&file, &gguf)?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(thread_count())
            .thread_name(|i| format!("model-chat-{i}"))
            .build()
            .map_err(|error| ModelError::Run(format!("start threads: {error}")))?;
        let generator = Self {
            name: name.to_owned(),
            vocabulary: Arc::new(Vocabulary::read(&gguf)?),
            template: Template::read(&gguf)?,
            context: network.shape().context.min(options.context_tokens),
            network,
            pool,
            caches: Mutex::default(),
            conversations: options.conversations.max(1),
        };
        tracing::info!(
            model = name,
            context_tokens = generator.context,
            took_ms = started.elapsed().as_millis() as u64,
            "language model loaded"
        );
        Ok(generator)
    }

    /// The name in the lock file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Most tokens of a conversation and its reply.
    pub fn context_tokens(&self) -> usize {
        self.context
    }

    /// The model's own tokenizer.
    pub fn tokenizer(&self) -> ChatTokenizer {
        ChatTokenizer(Arc::clone(&self.vocabulary))
    }

    /// The tokens of a prompt: `messages` and `tools` in the form of OpenAI's chat completions, with text as content and the
    /// arguments of calls as objects. Only the template's own special tokens are special in it.
    ///
    /// # Errors
    /// When the model knows no functions and there are `tools`, or its template refuses the conversation.
    pub fn prompt(&self, messages: &[Value], tools: &[Value]) -> Result<Vec<u32>, ModelError> {
        let has_calls = |message: &Value| {
            message["role"] == "tool"
                || message["tool_calls"]
                    .as_array()
                    .is_some_and(|calls| !calls.is_empty())
        };
        if !self.template.has_tools() && (!tools.is_empty() || messages.iter().any(has_calls)) {
            return Err(ModelError::Incapable {
                name: self.name.clone(),
                what: "calls of functions",
                hint: "leave `tools` and calls of them out, or use another model",
            });
        }
        let mut guarded = Guarded::default();
        let mut guard = |values: &[Value]| -> Vec<Value> {
            let values = values.iter();
            values
                .map(|value| self.guarded(value, &mut guarded))
                .collect()
        };
        let (messages, tools) = (guard(messages), guard(tools));
        let rendered = self.template.render(&messages, &tools)?;
        self.vocabulary.prompt(&rendered, &guarded)
    }

    fn guarded(&self, value: &Value, guarded: &mut Guarded) -> Value {
        match value {
            Value::String(text) => Value::String(self.vocabulary.guard(text, guarded)),
            Value::Array(items) => {
                let items = items.iter();
                items.map(|item| self.guarded(item, guarded)).collect()
            }
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| {
                    let name = self.vocabulary.guard(name, guarded);
                    (name, self.guarded(value, guarded))
                });
                Value::Object(fields.collect())
            }
            other => other.clone(),
        }
    }

    /// Makes a reply. `tell` gets each piece, and `None` where a token or a part of the prompt brought none; its `Break` ends
    /// the reply. `tools` are those of the prompt: calls of these are found in the text.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room for a reply, or the weights give no numbers.
    pub fn generate(
        &self,
        prompt: &[u32],
        tools: &[Value],
        options: &GenerateOptions,
        tell: &mut dyn FnMut(Option<Piece>) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        if prompt.is_empty() {
            return Err(ModelError::Input("the prompt is empty".to_owned()));
        }
        if prompt.len() >= self.context {
            return Err(ModelError::TooLong {
                name: self.name.clone(),
                tokens: prompt.len(),
                most: self.context,
            });
        }
        let mut cache = self.take(prompt);
        let generated = Reply {
            generator: self,
            cache: &mut cache,
            output: Output::new(&options.stop),
            calls: Calls::new(tools),
            tell,
        }
        .run(prompt, options)?;
        // After an error what the cache holds is not known.
        self.give_back(cache);
        Ok(generated)
    }

    /// What is known of the beginning of this prompt.
    fn take(&self, prompt: &[u32]) -> Cache {
        let mut caches = self.caches();
        let known = caches.iter().map(|cache| cache.common(prompt)).enumerate();
        let best = known.max_by_key(|(_, common)| *common);
        match best {
            Some((at, common)) if common > 0 => caches.remove(at),
            _ => Cache::new(self.network.shape()),
        }
    }

    fn give_back(&self, cache: Cache) {
        let mut caches = self.caches();
        if caches.len() >= self.conversations {
            caches.remove(0);
        }
        caches.push(cache);
    }

    /// A panic elsewhere leaves the list as it was: every change to it is a single call.
    fn caches(&self) -> MutexGuard<'_, Vec<Cache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply that is being made.
struct Reply<'a> {
    generator: &'a Generator,
    cache: &'a mut Cache,
    output: Output,
    calls: Calls,
    tell: &'a mut dyn FnMut(Option<Piece>) -> ControlFlow<()>,
}

impl Reply<'_> {
    fn run(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Generated, ModelError> {
        let generator = self.generator;
        let (network, vocabulary) = (&generator.network, &generator.vocabulary);
        // The last token is always worked out, for its scores.
        let cached = self.cache.common(prompt).min(prompt.len() - 1);
        self.cache.keep(cached);
        let mut generated = Generated {
            ending: Ending::Length,
            input_tokens: prompt.len(),
            cached_tokens: cached,
            output_tokens: 0,
        };
        let room = generator.context - prompt.len();
        let most = options.max_tokens.map_or(room, |most| most.min(room));
        let mut rest = &prompt[cached..];
        while rest.len() > PIECE_TOKENS {
            let (piece, more) = rest.split_at(PIECE_TOKENS);
            let cache = &mut *self.cache;
            generator.pool.install(|| network.advance(piece, cache))?;
            rest = more;
            if (self.tell)(None).is_break() {
                generated.ending = Ending::Cancelled;
                return Ok(generated);
            }
        }
        let mut next = rest.to_vec();
        let mut sampler = Sampler::new(options);
        while generated.output_tokens < most {
            // A token at a time: a thread of the pool that waits takes up other work, which must not be a whole reply.
            let cache = &mut *self.cache;
            let scores = generator.pool.install(|| network.scores(&next, cache))?;
            let token = sampler.next(scores)?;
            generated.output_tokens += 1;
            if vocabulary.is_end(token) {
                generated.ending = Ending::Complete;
                break;
            }
            let shown = self.output.push(vocabulary.shown(token));
            let pieces = self.calls.push(&shown.text);
            if self.tell_all(pieces).is_break() {
                generated.ending = Ending::Cancelled;
                return Ok(generated);
            }
            if let Some(stop) = shown.stop {
                generated.ending = Ending::Stop(stop);
                break;
            }
            next = vec![token];
        }
        // What a stop text followed is shown; it is gone itself.
        let shown = match generated.ending {
            Ending::Stop(_) => String::new(),
            _ => {
                let shown = self.output.finish();
                if let Some(stop) = shown.stop {
                    generated.ending = Ending::Stop(stop);
                }
                shown.text
            }
        };
        let mut pieces = self.calls.push(&shown);
        pieces.extend(self.calls.finish());
        if self.tell_all(pieces).is_break() {
            generated.ending = Ending::Cancelled;
        }
        Ok(generated)
    }

    fn tell_all(&mut self, pieces: Vec<Piece>) -> ControlFlow<()> {
        if pieces.is_empty() {
            return (self.tell)(None);
        }
        pieces
            .into_iter()
            .try_for_each(|piece| (self.tell)(Some(piece)))
    }
}
