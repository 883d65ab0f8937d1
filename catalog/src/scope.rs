//! Whose data a call may touch: a tenant that a credential proved, as a type of its own.
//!
//! A [`TenantId`] is a name, and anybody can write one down; a [`TenantScope`] cannot be made of a name. It comes with a
//! `Principal`, which only the catalog's look-up of a credential makes, or from [`TenantScope::internal`], where the
//! program says why it acts without a caller. What answers callers (search, answers, SQL, topics, letters) takes a scope,
//! so that there is no call without it. On PostgreSQL the database holds the statements to it, see `store/postgres.rs`.

use std::fmt;
use std::ops::Deref;

use serde::Serialize;

use crate::ids::{CollectionName, CollectionRef, TenantId};

/// A tenant whose data the holder may touch. It is written out like its name, and read from nowhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TenantScope(TenantId);

/// Why the program acts for a tenant without a caller. It decides nothing: it is there to be found with `grep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Internal {
    /// A row of the log tells whose it is, and a pipeline acts on it.
    Event,
    /// Work that goes on by itself: following folders, sweeping, merging, taking up what a dead process left.
    Chore,
    /// A program on its own data directory, whose owner could read the files as well: examples, measurements.
    OwnData,
    /// A test.
    Test,
}

impl TenantScope {
    /// For the look-ups that turn a credential into a `Principal`, and nothing else.
    pub(crate) fn of_credential(tenant: TenantId) -> Self {
        Self(tenant)
    }

    /// The scope of a call that nobody outside has made.
    pub fn internal(tenant: TenantId, _reason: Internal) -> Self {
        Self(tenant)
    }

    /// The tenant's collection of that name.
    pub fn collection(&self, collection: CollectionName) -> CollectionRef {
        CollectionRef {
            tenant: self.0.clone(),
            collection,
        }
    }

    /// The tenant's name, for rows, labels and messages.
    pub fn id(&self) -> &TenantId {
        &self.0
    }
}

impl Deref for TenantScope {
    type Target = TenantId;

    fn deref(&self) -> &TenantId {
        &self.0
    }
}

impl PartialEq<TenantId> for TenantScope {
    fn eq(&self, other: &TenantId) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for TenantScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
