//! `LanceStore` against real LanceDB tables in a temporary directory.

mod changes;
mod documents;
mod searches;
mod support;
