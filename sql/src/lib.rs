//! DataFusion session, table functions, PostgreSQL wire.
