//! What is done to a batch: one file per operator.
