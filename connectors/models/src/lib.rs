//! Local models: fetching, verifying and running them.
