//! Pipeline definitions, validation, the task runtime.
