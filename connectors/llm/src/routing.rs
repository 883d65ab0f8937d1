//! Which deployment is asked, when, and what happens after a failure: decisions as pure functions over plain data.
//!
//! Time comes in as milliseconds and chance as a number, so every decision can be repeated. Three scopes are kept apart:
//! [`retry`] repeats a call on one deployment, [`select`] orders the deployments of a model (the router goes on to other
//! models), [`breaker`] leaves a deployment alone for a while. [`limits`] says when a deployment has room.

pub mod breaker;
pub mod limits;
pub mod retry;
pub mod select;
