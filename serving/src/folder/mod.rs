//! Keeping a collection like a folder: what is new is handed over, what is unchanged costs a hash, what is gone is
//! removed from search.
//!
//! [`scan`] finds the files, [`sync()`] brings the collection up to them, [`watch`] goes on doing so when something
//! changes. The collection is reached through [`Documents`]: over HTTP by `va index`, in the process by the folders of
//! `va.yaml` ([`served`]). Everything goes in and out through the same uploads and removals as any other document.

mod documents;
mod listen;
mod local;
mod pairs;
mod scan;
pub mod served;
mod sync;
mod watch;

pub use documents::{Checked, Documents, Held, Large, Small, Standing, SyncError, Taken, Trouble};
pub use local::LocalDocuments;
pub use scan::{Area, FoundFile, Note, Root, Scan};
pub use sync::{Change, Plan, Progress, Report, Tally, Wishes, plan, sync, wait_for};
pub use watch::Follower;
