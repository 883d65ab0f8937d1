//! Local models: fetching, verifying and running them.
//!
//! - `lock` which models exist and the hash of every byte; `store` and `pip` bring them here; `spec` how each is used
//! - `embedder` what an embedding model offers; `native` + `bert` and `onnx` its two implementations; `tokenizer`
//! - `generate` language models: replies to conversations
//! - `registry` loads on first use and shares; `workers` the threads that models run on
//!
//! Relies on `rten` (ONNX graphs) and `rten-gemm` (matrix kernels), both pure Rust. Leaves models behind HTTP, and the
//! caching of vectors, to others.

mod bert;
mod embedder;
mod error;
mod files;
mod generate;
mod lock;
mod native;
mod onnx;
mod pip;
mod pooling;
mod registry;
mod spec;
mod store;
mod tokenizer;
mod unigram;
mod workers;

pub use bert::linear::Precision;
pub use embedder::{Embedder, Role, load_embedder};
pub use error::ModelError;
pub use generate::{
    ChatTokenizer, Ending, GenerateOptions, Generated, Generator, GeneratorOptions, Generators,
    Piece,
};
pub use lock::{
    DEFAULT_EMBEDDER, JoinedFile, ModelEntry, ModelKind, ModelLock, Package, PinnedFile, Registry,
    dims_of,
};
pub use pooling::Pooling;
pub use registry::{Embedders, SharedTokenizer};
pub use spec::EmbeddingSpec;
pub use store::{ModelInfo, ModelState, ModelStore, NoProgress, Progress, default_model_dir};
pub use tokenizer::TextTokenizer;
