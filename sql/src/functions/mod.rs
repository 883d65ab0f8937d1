//! Functions that SQL gets beside DataFusion's own.

mod hybrid_search;

pub(crate) use hybrid_search::{HybridSearch, bind_parameters, parameter_types};
