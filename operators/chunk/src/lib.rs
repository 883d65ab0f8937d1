//! Parsed documents to chunks that keep sentences, headings, tables and code whole.
