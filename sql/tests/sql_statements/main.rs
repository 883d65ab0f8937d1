//! SQL as its users see it: over a real catalog, vector store and log, in `.slt` files and through real `psql`.

mod limits;
mod postgres;
mod slt;
mod wire;
mod world;
