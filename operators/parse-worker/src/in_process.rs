//! Parsing in this very process: no limit of time or memory holds.
//!
//! For tests of operators and of pipeline files, where the program that runs is not `va` and could not be its own worker.

use async_trait::async_trait;
use rayon::prelude::*;
use va_parse::{Document, Limits};

use crate::parser::{Failure, Parser, Source, Unavailable};

/// Parses on the processors of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct InProcess {
    pub limits: Limits,
}

#[async_trait]
impl Parser for InProcess {
    async fn parse(
        &self,
        documents: Vec<Source>,
        limits: &Limits,
    ) -> Result<Vec<Result<Document, Failure>>, Unavailable> {
        let limits = *limits;
        let work = move || {
            documents
                .par_iter()
                .map(|source| va_parse::parse(&source.input(), &limits).map_err(Failure::Refused))
                .collect()
        };
        // `va_parse::parse` catches its panics, so only a runtime that is going away ends here.
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Unavailable(error.to_string()))
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}
