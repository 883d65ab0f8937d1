//! The life of a document version, as pure functions.
//!
//! ```text
//! UPLOADING --> PROCESSING --> READY --> SUPERSEDED
//!     |             |  ^         ^
//!     |             v  |         |
//!     +---------> FAILED --------+            any of them --> DELETING --> DELETED
//! ```
//!
//! `UPLOADING`: begun, and not yet known to be in the log. `PROCESSING`: in the log, so a pipeline owes news of it.
//! News comes from pipelines that replay after a crash, so it may come twice, late, or without the step before it
//! (the note that processing began is lost when the process dies between the log's commit and that note). What is
//! merely repeated or late changes nothing and is no error; only what contradicts the state is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::CatalogError;
use crate::ids::{DocumentId, Version};

/// The state of one version of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DocumentState {
    Uploading,
    Processing,
    Ready,
    Failed,
    /// A newer version is ready.
    Superseded,
    /// To be removed from the indexes.
    Deleting,
    /// Gone from the indexes; kept so that version numbers never repeat.
    Deleted,
}

impl DocumentState {
    pub const ALL: [Self; 7] = [
        Self::Uploading,
        Self::Processing,
        Self::Ready,
        Self::Failed,
        Self::Superseded,
        Self::Deleting,
        Self::Deleted,
    ];

    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uploading => "UPLOADING",
            Self::Processing => "PROCESSING",
            Self::Ready => "READY",
            Self::Failed => "FAILED",
            Self::Superseded => "SUPERSEDED",
            Self::Deleting => "DELETING",
            Self::Deleted => "DELETED",
        }
    }

    /// `None` for an unknown word; upper and lower case are the same.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str().eq_ignore_ascii_case(word))
    }

    /// Whether a version may go from `self` to `next`. A state is no transition to itself.
    pub fn can_become(self, next: Self) -> bool {
        use DocumentState::*;
        match self {
            Uploading => matches!(next, Processing | Ready | Failed | Superseded | Deleting),
            Processing => matches!(next, Ready | Failed | Superseded | Deleting),
            Ready => matches!(next, Superseded | Deleting),
            // A failed row can be retried from the dead-letter topic.
            Failed => matches!(next, Processing | Ready | Superseded | Deleting),
            Superseded => next == Deleting,
            Deleting => next == Deleted,
            Deleted => false,
        }
    }

    /// Whether a pipeline still owes news of it.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Uploading | Self::Processing | Self::Deleting)
    }
}

impl fmt::Display for DocumentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of one version of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It is in the log.
    Processing,
    /// A failed one is tried again.
    Retried,
    /// It is in both indexes.
    Ready { title: Option<String>, chunks: u32 },
    /// It cannot be indexed, and why.
    Failed { reason: String },
    /// The document is gone from both indexes, up to and including this version.
    Deleted,
}

impl News {
    fn state(&self) -> DocumentState {
        match self {
            Self::Processing | Self::Retried => DocumentState::Processing,
            Self::Ready { .. } => DocumentState::Ready,
            Self::Failed { .. } => DocumentState::Failed,
            Self::Deleted => DocumentState::Deleted,
        }
    }
}

/// What news did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// The state is new.
    Changed,
    /// The state was that already; a repeated `Ready` or `Failed` renews title, chunks and reason.
    Repeated,
    /// A newer version, a removal or a later state came first; nothing changed, or the version became `SUPERSEDED`.
    Late,
}

/// What to write: the version's next state, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub applied: Applied,
    pub next: Option<DocumentState>,
}

/// Decides what `news` of `version` does, given the version's state and the document's newest ready version.
pub(crate) fn decide(
    document: DocumentId,
    version: Version,
    state: DocumentState,
    current: Option<Version>,
    news: &News,
) -> Result<Step, CatalogError> {
    use DocumentState::*;
    let late = |next| {
        Ok(Step {
            applied: Applied::Late,
            next,
        })
    };
    let target = news.state();
    let outrun = current.is_some_and(|current| current > version);
    match (news, state) {
        // A removal, once asked for, is only followed by its end.
        (News::Deleted, Deleting) => {}
        (News::Deleted, Deleted) => {}
        (_, Deleting | Deleted | Superseded) if *news != News::Deleted => return late(None),
        (News::Ready { .. }, _) if outrun => return late(Some(Superseded)),
        (News::Processing, Ready | Failed) => return late(None),
        (News::Retried, Ready) => return late(None),
        _ => {}
    }
    if state == target {
        return Ok(Step {
            applied: Applied::Repeated,
            next: Some(target),
        });
    }
    if state.can_become(target) {
        return Ok(Step {
            applied: Applied::Changed,
            next: Some(target),
        });
    }
    let allowed: Vec<_> = DocumentState::ALL
        .into_iter()
        .filter(|next| state.can_become(*next))
        .map(DocumentState::as_str)
        .collect();
    Err(CatalogError::Conflict {
        kind: "document",
        name: format!("{document} version {version}"),
        from: state.to_string(),
        to: target.to_string(),
        allowed: if allowed.is_empty() {
            "nothing".to_owned()
        } else {
            allowed.join(", ")
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CollectionName, CollectionRef, TenantId};

    /// Rows: from; columns: to, in the order of `ALL`.
    #[test]
    fn transitions() {
        let table = [
            "UPLOADING  -> . P R F S D .",
            "PROCESSING -> . . R F S D .",
            "READY      -> . . . . S D .",
            "FAILED     -> . P R . S D .",
            "SUPERSEDED -> . . . . . D .",
            "DELETING   -> . . . . . . X",
            "DELETED    -> . . . . . . .",
        ];
        for (from, line) in DocumentState::ALL.into_iter().zip(table) {
            let (name, cells) = line.split_once("->").expect("an arrow");
            assert_eq!(DocumentState::parse(name.trim()), Some(from));
            for (to, cell) in DocumentState::ALL.into_iter().zip(cells.split_whitespace()) {
                assert_eq!(from.can_become(to), cell != ".", "{from} -> {to}");
            }
        }
    }

    /// Each line: state, newest ready version (of a version 2), news, what happens.
    #[test]
    fn news_is_applied_repeated_late_or_refused() {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a valid name"),
        };
        let document = DocumentId::of(&collection, "file:///a");
        let cases = "
            UPLOADING  - processing changed PROCESSING
            UPLOADING  - ready      changed READY
            UPLOADING  - failed     changed FAILED
            UPLOADING  - deleted    conflict
            PROCESSING - processing repeated PROCESSING
            PROCESSING 1 ready      changed READY
            PROCESSING 3 ready      late SUPERSEDED
            PROCESSING - failed     changed FAILED
            READY      2 ready      repeated READY
            READY      2 processing late -
            READY      2 retried    late -
            READY      2 failed     conflict
            READY      2 deleted    conflict
            FAILED     - processing late -
            FAILED     - retried    changed PROCESSING
            FAILED     - failed     repeated FAILED
            FAILED     3 ready      late SUPERSEDED
            FAILED     1 ready      changed READY
            SUPERSEDED 3 ready      late -
            SUPERSEDED 3 failed     late -
            SUPERSEDED 3 deleted    conflict
            DELETING   - ready      late -
            DELETING   - deleted    changed DELETED
            DELETED    - deleted    repeated DELETED
            DELETED    - failed     late -";
        for case in cases.trim().lines() {
            let words: Vec<_> = case.split_whitespace().collect();
            let state = DocumentState::parse(words[0]).expect("a state");
            let current = words[1].parse().ok().map(Version);
            let news = match words[2] {
                "processing" => News::Processing,
                "retried" => News::Retried,
                "ready" => News::Ready {
                    title: None,
                    chunks: 1,
                },
                "failed" => News::Failed {
                    reason: "broken".into(),
                },
                _ => News::Deleted,
            };
            let got = match decide(document, Version(2), state, current, &news) {
                Ok(step) => format!(
                    "{} {}",
                    format!("{:?}", step.applied).to_lowercase(),
                    step.next.map_or("-", DocumentState::as_str)
                ),
                Err(error) => {
                    assert!(error.to_string().contains("cannot become"), "{error}");
                    "conflict".to_owned()
                }
            };
            assert_eq!(got, words[3..].join(" "), "{case}");
        }
    }
}
