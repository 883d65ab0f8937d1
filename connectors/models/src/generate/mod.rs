//! Language models in this process: replies to conversations, from GGUF files.
//!
//! - `gguf` the container; `matrix` weights and products; `network` from tokens to scores
//! - `vocabulary` from text to tokens; `template` from a conversation to text; `sample` from scores to a token
//! - `output` and `calls` what of a reply may be shown, and which calls of functions are in it
//! - `generator` all of it together; `registry` loads on first use and shares

mod calls;
mod generator;
mod gguf;
mod matrix;
mod network;
mod output;
mod registry;
mod sample;
mod template;
mod vocabulary;

pub use calls::Piece;
pub use generator::{ChatTokenizer, Ending, Generated, Generator, GeneratorOptions};
pub use registry::Generators;
pub use sample::GenerateOptions;
