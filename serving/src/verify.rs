//! Whether the catalog, the vector store and the full-text index agree on a collection.
//!
//! The comparison is a pure function over what each of them holds: ids, versions and content hashes of chunks, read from
//! one view of both indexes. Documents that a pipeline is working on are compared between the indexes only, because what
//! the catalog says of them is about to change. Nothing is changed here.

use std::collections::BTreeMap;

use serde::Serialize;
use va_catalog::store::{CatalogError, DocumentState, ExpectedInIndex};
use va_catalog::{ChunkId, ChunkKey, CollectionRef, DocumentId, Version};

use crate::platform::Platform;

/// Differences that a report lists; all are counted.
const LISTED_MAX: usize = 1_000;

/// What a comparison found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub collection: String,
    pub ok: bool,
    /// Documents that search shows, by the catalog.
    pub documents: usize,
    /// Their chunks, by the catalog.
    pub chunks: u64,
    /// Chunks in the vector store; `None` for a collection without vectors.
    pub vectors: Option<usize>,
    /// Chunks in the full-text index.
    pub texts: usize,
    /// Documents that a pipeline is working on.
    pub in_work: usize,
    pub differences: usize,
    /// The first [`LISTED_MAX`] of them.
    pub listed: Vec<Difference>,
}

/// One thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub kind: Kind,
    pub document: DocumentId,
    /// The path or URL, where the catalog knows the document.
    pub uri: Option<String>,
    pub detail: String,
}

/// What kind of disagreement it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A chunk is in one index and not in the other.
    OneSided,
    /// A chunk is in both indexes with different content.
    Differs,
    /// A chunk is in an index twice.
    Duplicate,
    /// The index has fewer or more chunks of a document than the catalog says, or of another version.
    Count,
    /// An index holds chunks of a document that the catalog does not show.
    Orphan,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("{0}")]
    Index(String),
}

/// Compares the three.
pub async fn verify(
    platform: &Platform,
    collection: &CollectionRef,
) -> Result<Report, VerifyError> {
    let config = platform.catalog.collection(collection).await?.config;
    // Read before and after the indexes: what is the same in both was so in between.
    let before = platform.catalog.expected_in_index(collection).await?;
    let view = platform.indexes.view(collection).await;
    let index = |error: &dyn std::fmt::Display| VerifyError::Index(error.to_string());
    let vectors = match (&config.model, &view.vectors) {
        (None, Ok(None)) => None,
        (_, Ok(Some(vectors))) => Some(vectors.chunk_keys().await.map_err(|e| index(&e))?),
        (Some(_), Ok(None)) => Some(Vec::new()),
        (_, Err(error)) => return Err(index(error)),
    };
    let texts = match &view.texts {
        Ok(Some(texts)) => texts.chunk_keys().await.map_err(|e| index(&e))?,
        Ok(None) => Vec::new(),
        Err(error) => return Err(index(error)),
    };
    let after = platform.catalog.expected_in_index(collection).await?;
    let expected = settled(before, after);
    let counts = (vectors.as_ref().map(Vec::len), texts.len());

    let documents = expected.iter().filter(|d| d.current.is_some()).count();
    let chunks = expected
        .iter()
        .filter_map(|document| Some(u64::from(document.current?.1)))
        .sum();
    let in_work = expected.iter().filter(|document| in_work(document)).count();
    // A large collection takes a while to compare.
    let differences =
        tokio::task::spawn_blocking(move || compare(&expected, vectors.as_deref(), &texts))
            .await
            .map_err(|error| index(&error))?;
    Ok(Report {
        collection: collection.collection.to_string(),
        ok: differences.is_empty(),
        documents,
        chunks,
        vectors: counts.0,
        texts: counts.1,
        in_work,
        differences: differences.len(),
        listed: differences.into_iter().take(LISTED_MAX).collect(),
    })
}

/// Documents as they were between two readings; one that changed meanwhile counts as being worked on.
fn settled(before: Vec<ExpectedInIndex>, after: Vec<ExpectedInIndex>) -> Vec<ExpectedInIndex> {
    let before: BTreeMap<DocumentId, ExpectedInIndex> =
        before.into_iter().map(|d| (d.id, d)).collect();
    after
        .into_iter()
        .map(|mut document| {
            if before.get(&document.id) != Some(&document) {
                document.latest.1 = DocumentState::Processing;
            }
            document
        })
        .collect()
}

fn in_work(document: &ExpectedInIndex) -> bool {
    matches!(
        document.latest.1,
        DocumentState::Uploading | DocumentState::Processing | DocumentState::Deleting
    )
}

/// The chunks of one index, in order.
type Held = BTreeMap<(DocumentId, ChunkId), ChunkKey>;

/// Everything that does not agree, by document.
fn compare(
    expected: &[ExpectedInIndex],
    vectors: Option<&[ChunkKey]>,
    texts: &[ChunkKey],
) -> Vec<Difference> {
    let known: BTreeMap<DocumentId, &ExpectedInIndex> =
        expected.iter().map(|d| (d.id, d)).collect();
    let mut found = Found {
        known: &known,
        differences: Vec::new(),
    };
    let texts = found.held("the full-text index", texts);
    let vectors = vectors.map(|keys| found.held("the vector store", keys));
    if let Some(vectors) = &vectors {
        found.sides(vectors, &texts);
    }
    let mut sides = vec![("the full-text index", &texts)];
    sides.extend(vectors.as_ref().map(|held| ("the vector store", held)));
    for (index, held) in sides {
        found.against_catalog(index, held, expected);
    }
    let mut differences = found.differences;
    differences.sort_by_key(|difference| difference.document);
    differences
}

struct Found<'a> {
    known: &'a BTreeMap<DocumentId, &'a ExpectedInIndex>,
    differences: Vec<Difference>,
}

impl Found<'_> {
    fn note(&mut self, kind: Kind, document: DocumentId, detail: String) {
        let uri = self.known.get(&document).map(|known| known.uri.clone());
        self.differences.push(Difference {
            kind,
            document,
            uri,
            detail,
        });
    }

    fn held(&mut self, index: &str, keys: &[ChunkKey]) -> Held {
        let mut held = Held::new();
        for key in keys {
            if held.insert((key.document, key.id), *key).is_some() {
                let detail = format!("{index} holds chunk {} twice", key.id);
                self.note(Kind::Duplicate, key.document, detail);
            }
        }
        held
    }

    fn sides(&mut self, vectors: &Held, texts: &Held) {
        for (place, key) in vectors {
            match texts.get(place) {
                None => {
                    let detail = format!(
                        "chunk {} of version {} is in the vector store only",
                        key.id, key.version
                    );
                    self.note(Kind::OneSided, key.document, detail);
                }
                Some(other) if other != key => {
                    let detail = format!("chunk {} has another content in each index", key.id);
                    self.note(Kind::Differs, key.document, detail);
                }
                Some(_) => {}
            }
        }
        for (place, key) in texts {
            if !vectors.contains_key(place) {
                let detail = format!(
                    "chunk {} of version {} is in the full-text index only",
                    key.id, key.version
                );
                self.note(Kind::OneSided, key.document, detail);
            }
        }
    }

    fn against_catalog(&mut self, index: &str, held: &Held, expected: &[ExpectedInIndex]) {
        let mut counts: BTreeMap<DocumentId, BTreeMap<Version, u32>> = BTreeMap::new();
        for key in held.values() {
            let versions = counts.entry(key.document).or_default();
            *versions.entry(key.version).or_default() += 1;
        }
        for document in expected {
            let versions = counts.remove(&document.id).unwrap_or_default();
            if in_work(document) {
                continue;
            }
            let wanted = match document.current {
                Some((version, chunks)) if chunks > 0 => BTreeMap::from([(version, chunks)]),
                _ => BTreeMap::new(),
            };
            if versions == wanted {
                continue;
            }
            let has = described(&versions);
            if document.current.is_none() {
                let detail = format!("{index} holds {has}; the catalog shows nothing of it");
                self.note(Kind::Orphan, document.id, detail);
            } else {
                let wanted = described(&wanted);
                let detail = format!("{index} holds {has}; the catalog says {wanted}");
                self.note(Kind::Count, document.id, detail);
            }
        }
        for (document, versions) in counts {
            let has = described(&versions);
            let detail = format!("{index} holds {has}; the catalog has no such document");
            self.note(Kind::Orphan, document, detail);
        }
    }
}

fn described(versions: &BTreeMap<Version, u32>) -> String {
    if versions.is_empty() {
        return "no chunk".to_owned();
    }
    let parts: Vec<String> = versions
        .iter()
        .map(|(version, chunks)| format!("{chunks} chunks of version {version}"))
        .collect();
    parts.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use va_catalog::{CollectionName, TenantId};

    fn collection() -> CollectionRef {
        CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").expect("a name"),
        }
    }

    fn key(uri: &str, version: u32, index: u32) -> ChunkKey {
        let document = DocumentId::of(&collection(), uri);
        ChunkKey {
            id: ChunkId::of(&collection(), document, Version(version), index),
            document,
            version: Version(version),
            digest: u64::from(index),
        }
    }

    fn expected(uri: &str, state: DocumentState, current: Option<(u32, u32)>) -> ExpectedInIndex {
        ExpectedInIndex {
            id: DocumentId::of(&collection(), uri),
            uri: uri.to_owned(),
            latest: (Version(current.map_or(1, |(version, _)| version)), state),
            current: current.map(|(version, chunks)| (Version(version), chunks)),
        }
    }

    fn kinds(differences: &[Difference]) -> Vec<(Kind, Option<&str>)> {
        differences
            .iter()
            .map(|d| (d.kind, d.uri.as_deref()))
            .collect()
    }

    #[test]
    fn what_agrees_is_quiet() {
        let catalog = [
            expected("a", DocumentState::Ready, Some((2, 2))),
            // A newer version failed; the older one is shown.
            expected("b", DocumentState::Failed, Some((1, 1))),
            expected("empty", DocumentState::Ready, Some((1, 0))),
            expected("gone", DocumentState::Deleted, None),
            // In work: whatever the indexes hold, so long as both do.
            expected("new", DocumentState::Processing, None),
        ];
        let keys = [
            key("a", 2, 0),
            key("a", 2, 1),
            key("b", 1, 0),
            key("new", 1, 0),
        ];
        assert_eq!(compare(&catalog, Some(&keys), &keys), []);
        assert_eq!(compare(&catalog, None, &keys), []);
    }

    #[test]
    fn every_disagreement_is_told() {
        let catalog = [
            expected("a", DocumentState::Ready, Some((2, 2))),
            expected("gone", DocumentState::Deleted, None),
        ];
        let (first, second) = (key("a", 2, 0), key("a", 2, 1));
        let check = |vectors: &[ChunkKey], texts: &[ChunkKey], wanted: &[Kind]| {
            let differences = compare(&catalog, Some(vectors), texts);
            let found: Vec<Kind> = differences.iter().map(|d| d.kind).collect();
            assert_eq!(found, wanted, "{differences:?}");
        };
        check(&[first, second], &[first], &[Kind::OneSided, Kind::Count]);
        check(&[first], &[first], &[Kind::Count, Kind::Count]);
        check(
            &[first, second],
            &[first, second, second],
            &[Kind::Duplicate],
        );
        let changed = ChunkKey {
            digest: 99,
            ..second
        };
        check(&[first, second], &[first, changed], &[Kind::Differs]);
        let old = [key("a", 1, 0), key("a", 1, 1)];
        check(&old, &old, &[Kind::Count, Kind::Count]);

        let orphans = [first, second, key("gone", 1, 0)];
        let differences = compare(&catalog, Some(&orphans), &orphans);
        assert_eq!(
            kinds(&differences),
            [(Kind::Orphan, Some("gone")), (Kind::Orphan, Some("gone"))]
        );
        let stray = [first, second, key("stray", 1, 0)];
        let differences = compare(&catalog, None, &stray);
        assert_eq!(kinds(&differences), [(Kind::Orphan, None)]);
    }
}
