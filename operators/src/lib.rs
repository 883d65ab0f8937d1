//! What is done to a batch: one file per operator.
//!
//! [`operator`] is the seam, [`registry`] the list; the other modules are shared by several operators.

mod expression;
pub mod operator;
mod parsed;
pub mod registry;
mod shape;

pub use operator::{
    BarrierOutput, ByKey, Counts, Cx, DeadLetter, Message, Operator, OperatorEntry, Origin,
    Resources, RowOrigin, State,
};
