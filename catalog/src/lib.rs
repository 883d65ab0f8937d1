//! Names and meaning: tenants, collections, documents, topics, pipeline graphs, models, settings.
