//! Full-text seam with tantivy and Chinese and English analysis.
