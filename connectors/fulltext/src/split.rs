//! Immutable full-text indexes that are searched together, as one.
//!
//! A [`TextSplit`] is written once, into a folder, and never changes; which of its documents are still alive is told by
//! whoever opens it ([`TextSplit::without`]). A search over several of them scores with statistics summed over all, so its
//! hits and scores are those of one index that holds the same chunks, dead ones included: an index counts replaced chunks
//! in its statistics too, until it merges.
//!
//! Merging copies the postings of live chunks, so no text is analysed twice. Which splits there are, and where their
//! folders come from, is the caller's business.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use tantivy::collector::{Collector, TopDocs};
use tantivy::directory::MmapDirectory;
use tantivy::fastfield::{AliveBitSet, write_alive_bitset};
use tantivy::indexer::merge_filtered_segments;
use tantivy::query::{Bm25StatisticsProvider, EnableScoring, Query};
use tantivy::schema::Field;
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{
    BitSet, DocAddress, DocId, Index, IndexReader, IndexSettings, ReloadPolicy, Searcher, Segment,
    SegmentReader, TantivyDocument, TantivyError, Term,
};
use va_catalog::chunk::records;
use va_catalog::{ChunkId, ChunkKey, ChunkRecord, DocumentId, Filter};

use crate::analysis::{Analysis, TantivyTokenizer};
use crate::lookup;
use crate::query::{self, Ranking};
use crate::schema::{Fields, schema};
use crate::seam::{HITS_MAX, TextError, TextHit};

/// For the hash table of terms, which grows when it must.
const WRITER_BUDGET_BYTES: usize = 15_000_000;

/// The chunks of each document: segment and row.
type Places = HashMap<DocumentId, Vec<(usize, DocId)>>;

/// An immutable index.
pub struct TextSplit {
    fields: Fields,
    analysis: Analysis,
    searcher: Searcher,
    segments: Vec<Segment>,
    /// Tokens of the text and of the titles, which BM25 needs.
    tokens: [(Field, u64); 2],
    /// Where the chunks of each document are; read when the first of them dies.
    documents: OnceLock<Places>,
    _reader: IndexReader,
}

/// A split without its dead documents. Cheap to clone.
#[derive(Clone)]
pub struct LiveTexts {
    split: Arc<TextSplit>,
    /// One a segment; they know which chunks are alive.
    readers: Arc<Vec<SegmentReader>>,
}

impl TextSplit {
    /// Writes the chunk rows as a split into the folder, which must be empty. Blocks.
    pub fn write(dir: &Path, rows: &RecordBatch) -> Result<(), TextError> {
        let analysis = Analysis::default();
        let (schema, fields) = schema(analysis);
        let tokenizers = tantivy::tokenizer::TokenizerManager::default();
        tokenizers.register(&analysis.name(), analyser(analysis));
        let directory = MmapDirectory::open(dir).map_err(TantivyError::from)?;
        let mut writer = Index::builder()
            .schema(schema)
            .tokenizers(tokenizers)
            .single_segment_index_writer(directory, WRITER_BUDGET_BYTES)?;
        let mut seen = HashSet::new();
        for chunk in records(rows)? {
            // Should a chunk be there twice, either is as good.
            if seen.insert(chunk.id) {
                writer.add_document(fields.document(&chunk)?)?;
            }
        }
        writer.finalize()?;
        Ok(())
    }

    /// Opens what [`TextSplit::write`] or [`TextSplit::merge`] wrote. Blocks.
    pub fn open(dir: &Path) -> Result<Arc<Self>, TextError> {
        let analysis = Analysis::default();
        let (schema, fields) = schema(analysis);
        let index = Index::open_in_dir(dir)?;
        if index.schema() != schema {
            return Err(TextError::Foreign {
                path: dir.to_owned(),
            });
        }
        index
            .tokenizers()
            .register(&analysis.name(), analyser(analysis));
        let reader: IndexReader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .try_into()?;
        let searcher = reader.searcher();
        let mut tokens = [(fields.text, 0), (fields.title, 0)];
        for (field, tokens) in &mut tokens {
            *tokens = searcher.total_num_tokens(*field)?;
        }
        Ok(Arc::new(Self {
            segments: index.searchable_segments()?,
            fields,
            analysis,
            searcher,
            tokens,
            documents: OnceLock::new(),
            _reader: reader,
        }))
    }

    /// Writes the live chunks of `inputs` as one split into the folder, which must be empty; returns how many they are.
    /// Without any, nothing is written. Blocks.
    pub fn merge(dir: &Path, inputs: &[LiveTexts]) -> Result<u64, TextError> {
        let mut segments = Vec::new();
        let mut alive = Vec::new();
        for reader in inputs.iter().flat_map(LiveTexts::segments) {
            let (segment, reader) = reader;
            if reader.num_docs() > 0 {
                segments.push(segment.clone());
                alive.push(reader.alive_bitset().cloned());
            }
        }
        let rows = inputs.iter().map(LiveTexts::count).sum();
        if rows > 0 {
            let directory = MmapDirectory::open(dir).map_err(TantivyError::from)?;
            merge_filtered_segments(&segments, IndexSettings::default(), alive, directory)?;
        }
        Ok(rows)
    }

    /// The split without the chunks of `dead`. Blocks.
    pub fn without(self: &Arc<Self>, dead: &HashSet<DocumentId>) -> Result<LiveTexts, TextError> {
        let readers = match dead.is_empty() {
            true => self.searcher.segment_readers().to_vec(),
            false => {
                let documents = self.documents()?;
                let mut by_segment = vec![Vec::new(); self.segments.len()];
                for (segment, row) in dead.iter().filter_map(|id| documents.get(id)).flatten() {
                    by_segment[*segment].push(*row);
                }
                let mut readers = Vec::with_capacity(self.segments.len());
                for (segment, dead) in self.segments.iter().zip(by_segment) {
                    let alive = all_but(segment.meta().max_doc(), &dead)?;
                    readers.push(SegmentReader::open_with_custom_alive_set(segment, alive)?);
                }
                readers
            }
        };
        Ok(LiveTexts {
            split: self.clone(),
            readers: Arc::new(readers),
        })
    }

    fn documents(&self) -> Result<&Places, TextError> {
        if let Some(documents) = self.documents.get() {
            return Ok(documents);
        }
        let mut documents = Places::new();
        for (at, segment) in self.searcher.segment_readers().iter().enumerate() {
            let Some(column) = segment.fast_fields().str("document_id")? else {
                continue;
            };
            let mut known: HashMap<u64, DocumentId> = HashMap::new();
            let mut text = String::new();
            for row in 0..segment.max_doc() {
                for term in column.term_ords(row) {
                    let id = match known.get(&term) {
                        Some(id) => *id,
                        None => {
                            text.clear();
                            column
                                .ord_to_str(term, &mut text)
                                .map_err(TantivyError::from)?;
                            let id = text.parse()?;
                            known.insert(term, id);
                            id
                        }
                    };
                    documents.entry(id).or_default().push((at, row));
                }
            }
        }
        Ok(self.documents.get_or_init(|| documents))
    }
}

fn analyser(analysis: Analysis) -> TextAnalyzer {
    TextAnalyzer::from(TantivyTokenizer(analysis))
}

/// Every row of a segment but these; `None` when these are none.
fn all_but(rows: u32, dead: &[DocId]) -> Result<Option<AliveBitSet>, TextError> {
    if dead.is_empty() {
        return Ok(None);
    }
    let mut alive = BitSet::with_max_value_and_full(rows);
    dead.iter().for_each(|row| alive.remove(*row));
    let mut bytes = Vec::new();
    write_alive_bitset(&alive, &mut bytes).map_err(TantivyError::from)?;
    Ok(Some(AliveBitSet::open(
        tantivy::directory::OwnedBytes::new(bytes),
    )))
}

impl LiveTexts {
    /// How many chunks are alive.
    pub fn count(&self) -> u64 {
        let rows = self
            .readers
            .iter()
            .map(|reader| u64::from(reader.num_docs()));
        rows.sum()
    }

    /// Every live chunk, in no order. Blocks.
    pub fn keys(&self) -> Result<Vec<ChunkKey>, TextError> {
        let mut keys = Vec::with_capacity(self.count() as usize);
        for reader in self.readers.iter() {
            // Read once, in order: a small cache is enough.
            let store = reader.get_store_reader(1).map_err(TantivyError::from)?;
            for document in store.iter::<TantivyDocument>(reader.alive_bitset()) {
                keys.push(self.split.fields.record(&document?)?.key());
            }
        }
        Ok(keys)
    }

    /// Adds those of the chunks that are here and alive. Blocks.
    pub fn find(
        &self,
        ids: &[ChunkId],
        found: &mut HashMap<ChunkId, ChunkRecord>,
    ) -> Result<(), TextError> {
        let split = &self.split;
        lookup::find(&split.searcher, &self.readers, &split.fields, ids, found)
    }

    fn segments(&self) -> impl Iterator<Item = (&Segment, &SegmentReader)> {
        self.split.segments.iter().zip(self.readers.iter())
    }

    /// The best rows of this split.
    fn best(
        &self,
        query: &dyn Query,
        statistics: &Summed,
        k: usize,
    ) -> Result<Vec<(f32, DocAddress)>, TextError> {
        let scoring =
            EnableScoring::enabled_from_statistics_provider(statistics, &self.split.searcher);
        let weight = query.weight(scoring)?;
        let collector = TopDocs::with_limit(k).order_by_score();
        let mut found = Vec::with_capacity(self.readers.len());
        for (at, reader) in self.readers.iter().enumerate() {
            found.push(collector.collect_segment(weight.as_ref(), at as u32, reader)?);
        }
        Ok(collector.merge_fruits(found)?)
    }
}

/// Statistics over several splits, for the terms of one query.
struct Summed {
    documents: u64,
    tokens: HashMap<Field, u64>,
    frequencies: BTreeMap<Term, u64>,
}

impl Summed {
    fn of(splits: &[LiveTexts], query: &dyn Query) -> Result<Self, TextError> {
        let mut frequencies = BTreeMap::new();
        query.query_terms(&mut |term, _| {
            frequencies.insert(term.clone(), 0);
        });
        let mut summed = Self {
            documents: 0,
            tokens: HashMap::new(),
            frequencies,
        };
        for LiveTexts { split, .. } in splits {
            summed.documents += split.searcher.total_num_docs()?;
            for (field, tokens) in split.tokens {
                *summed.tokens.entry(field).or_default() += tokens;
            }
            for (term, frequency) in &mut summed.frequencies {
                *frequency += split.searcher.doc_freq(term)?;
            }
        }
        Ok(summed)
    }
}

impl Bm25StatisticsProvider for Summed {
    fn total_num_tokens(&self, field: Field) -> tantivy::Result<u64> {
        Ok(self.tokens.get(&field).copied().unwrap_or_default())
    }

    fn total_num_docs(&self) -> tantivy::Result<u64> {
        Ok(self.documents)
    }

    fn doc_freq(&self, term: &Term) -> tantivy::Result<u64> {
        // Every term of the query was asked for before.
        Ok(self.frequencies.get(term).copied().unwrap_or_default())
    }
}

/// The `k` best matches in all splits, best first, as [`TextSnapshot::search`](crate::TextSnapshot::search) gives them for
/// one index. At most `at_once` splits are searched at the same time.
pub async fn search_splits(
    splits: &[LiveTexts],
    text: &str,
    k: usize,
    filter: &Filter,
    at_once: usize,
) -> Result<Vec<TextHit>, TextError> {
    if k > HITS_MAX {
        return Err(TextError::TooManyHits { k });
    }
    let Some(first) = splits.first().filter(|_| k > 0) else {
        return Ok(Vec::new());
    };
    let (split, text) = (first.split.clone(), query::cut(text).to_owned());
    let (filter, all) = (filter.clone(), splits.to_vec());
    let prepared = tokio::task::spawn_blocking(move || {
        let ranking = Ranking::default();
        let query = query::build(&split.fields, split.analysis, &ranking, &text, &filter);
        let Some(query) = query else {
            return Ok::<_, TextError>(None);
        };
        let summed = Summed::of(&all, query.as_ref())?;
        Ok(Some((query, summed)))
    });
    let Some(prepared) = prepared.await?? else {
        return Ok(Vec::new());
    };
    let prepared = Arc::new(prepared);
    let searches = splits.iter().cloned().enumerate().map(|(at, split)| {
        let prepared = prepared.clone();
        async move {
            let search = move || {
                let (query, summed) = &*prepared;
                let best = split.best(query.as_ref(), summed, k)?;
                let best = best.into_iter().map(|(score, row)| (score, at, row));
                Ok::<_, TextError>(best.collect::<Vec<_>>())
            };
            tokio::task::spawn_blocking(search).await?
        }
    });
    let searches = futures::stream::iter(searches).buffer_unordered(at_once.max(1));
    let mut best: Vec<(f32, usize, DocAddress)> = searches.try_concat().await?;
    // Splits end in any order; the same search must give the same hits.
    best.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    });
    best.truncate(k);
    let splits = splits.to_vec();
    tokio::task::spawn_blocking(move || {
        let mut hits = Vec::with_capacity(best.len());
        for (score, at, row) in best {
            let split = &splits[at].split;
            let document: TantivyDocument = split.searcher.doc(row)?;
            let chunk = split.fields.record(&document)?;
            hits.push(TextHit { chunk, score });
        }
        hits.sort_by(|a, b| {
            (b.score.total_cmp(&a.score)).then_with(|| a.chunk.id.cmp(&b.chunk.id))
        });
        Ok(hits)
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TantivyIndex, TextIndex};
    use va_catalog::chunk::{OneOrMany, batch_of};
    use va_catalog::{
        ChunkId, ChunkRecord, CollectionName, CollectionRef, DocumentRef, TenantId, Version, Viewer,
    };

    fn collection() -> CollectionRef {
        CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("帮助").expect("a name"),
        }
    }

    /// Every fifth document is for some only, every tenth for Ann too.
    fn tags(n: usize) -> Vec<String> {
        let mut tags = vec![format!("lang={}", ["zh", "en"][n % 2])];
        if n.is_multiple_of(5) {
            tags.extend(["va.restricted".to_owned(), "va.reader=role:pay".to_owned()]);
        }
        if n.is_multiple_of(10) {
            tags.push("va.reader=user:ann".to_owned());
        }
        tags
    }

    /// Chunks of a small, varied world in two languages: document `n` has `n % 3 + 1` of them.
    fn chunks(n: usize, version: u32) -> Vec<ChunkRecord> {
        let uri = format!("{n}.md");
        let id = DocumentId::of(&collection(), &uri);
        let words = [
            "freeze",
            "rows",
            "columns",
            "冻结行",
            "表格",
            "sheet",
            "打印",
            "print area",
        ];
        let count = n as u32 % 3 + 1;
        let chunk = |index: u32| ChunkRecord {
            id: ChunkId::of(&collection(), id, Version(version), index),
            document: DocumentRef {
                id,
                name: uri.clone(),
                uri: uri.clone(),
                title: n.is_multiple_of(4).then(|| words[n % 8].to_owned()),
                version: Version(version),
            },
            index,
            count,
            title_path: vec![],
            page: None,
            start: 0,
            end: 1,
            text: (0..n % 5 + 2 + version as usize)
                .map(|i| words[(n * 3 + i * (index as usize + 1) + version as usize) % 8])
                .collect::<Vec<_>>()
                .join(" "),
            tokens: 1,
            tags: tags(n),
        };
        (0..count).map(chunk).collect()
    }

    fn split(
        documents: impl Iterator<Item = usize>,
        version: u32,
    ) -> (tempfile::TempDir, Arc<TextSplit>) {
        let dir = tempfile::tempdir().expect("a folder");
        let chunks: Vec<_> = documents.flat_map(|n| chunks(n, version)).collect();
        let rows = batch_of(&collection(), &chunks).expect("rows");
        TextSplit::write(dir.path(), &rows).expect("written");
        let split = TextSplit::open(dir.path()).expect("a split");
        (dir, split)
    }

    fn same(found: &[TextHit], expected: &[TextHit]) {
        let scores = |hits: &[TextHit]| -> Vec<f32> { hits.iter().map(|hit| hit.score).collect() };
        for (found, expected) in scores(found).iter().zip(scores(expected)) {
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
        let ids =
            |hits: &[TextHit]| -> Vec<ChunkId> { hits.iter().map(|hit| hit.chunk.id).collect() };
        assert_eq!(ids(found), ids(expected));
    }

    #[tokio::test]
    async fn several_are_searched_as_one_and_merged_into_one() {
        // Documents 10 to 19 of the first split are replaced in the second; 70 is removed from the third.
        let parts = [split(0..20, 1), split(10..40, 2), split(40..90, 1)];
        let dead = |range: std::ops::Range<usize>| -> HashSet<DocumentId> {
            let id = |n| DocumentId::of(&collection(), &format!("{n}.md"));
            range.map(id).collect()
        };
        let dead = [dead(10..20), HashSet::new(), dead(70..71)];
        let live: Vec<LiveTexts> = parts
            .iter()
            .zip(&dead)
            .map(|((_, split), dead)| split.without(dead).expect("live"))
            .collect();

        // One index that saw the same changes. Its statistics have the dead chunks too, since it has not merged.
        let dir = tempfile::tempdir().expect("a folder");
        let index = TantivyIndex::open(dir.path()).expect("an index");
        let mut ids = Vec::new();
        for (documents, version) in [(0..20, 1), (10..40, 2), (40..90, 1)] {
            let chunks: Vec<_> = documents.flat_map(|n| chunks(n, version)).collect();
            ids = chunks.iter().map(|chunk| chunk.document.id).collect();
            let rows = batch_of(&collection(), &chunks).expect("rows");
            index
                .apply(&collection(), &ids, &rows)
                .await
                .expect("applied");
        }
        let gone = [DocumentId::of(&collection(), "70.md")];
        let none = batch_of(&collection(), &[]).expect("no rows");
        index
            .apply(&collection(), &gone, &none)
            .await
            .expect("applied");
        index.commit(&collection(), "x").await.expect("committed");
        assert!(!ids.is_empty());

        let english = [("lang".to_owned(), OneOrMany::One("en".into()))];
        let english = Filter::from(BTreeMap::from(english));
        let seen_by = |filter: &Filter, readers: &[&str]| {
            let readers = readers.iter().map(|r| r.parse().expect("a reader"));
            filter.clone().seen_by(Viewer::Only(readers.collect()))
        };
        let nobody = seen_by(&Filter::default(), &[]);
        let ann = seen_by(&english, &["user:ann"]);
        let dir = tempfile::tempdir().expect("a folder");
        let rows = TextSplit::merge(dir.path(), &live).expect("merged");
        let merged = TextSplit::open(dir.path()).expect("a split");
        let merged = [merged.without(&HashSet::new()).expect("live")];
        let count = index.count(&collection()).await.expect("a count");
        assert_eq!(rows, count);
        assert_eq!(merged[0].count(), count);
        assert_eq!(live.iter().map(LiveTexts::count).sum::<u64>(), count);

        for query in [
            "freeze rows",
            "冻结行",
            "print",
            "\"freeze rows\"",
            "表格 sheet 70.md",
            "nothing",
            "",
        ] {
            for filter in [&Filter::default(), &english, &nobody, &ann] {
                let expected = index
                    .search(&collection(), query, 500, filter)
                    .await
                    .expect("hits");
                let found = search_splits(&live, query, 500, filter, 2)
                    .await
                    .expect("hits");
                same(&found, &expected);
                // Without the dead, statistics are others, but what matches is not.
                let clean = search_splits(&merged, query, 500, filter, 2)
                    .await
                    .expect("hits");
                assert_eq!(clean.len(), expected.len(), "{query}");
                let few = search_splits(&live, query, 3, filter, 1)
                    .await
                    .expect("hits");
                assert_eq!(few.len(), expected.len().min(3), "{query}");
                for (few, expected) in few.iter().zip(&expected) {
                    assert!((few.score - expected.score).abs() < 1e-4);
                }
            }
        }
        let mut keys: Vec<_> = live
            .iter()
            .flat_map(|live| live.keys().expect("keys"))
            .map(|key| key.id)
            .collect();
        keys.sort();
        let snapshot = index
            .snapshot(&collection())
            .await
            .expect("read")
            .expect("there");
        let mut expected: Vec<_> = snapshot
            .chunk_keys()
            .await
            .expect("keys")
            .iter()
            .map(|key| key.id)
            .collect();
        expected.sort();
        assert_eq!(keys, expected);
    }

    #[tokio::test]
    async fn nothing_is_merged_to_nothing() {
        let (_dir, split) = split(0..1, 1);
        let id = DocumentId::of(&collection(), "0.md");
        let live = split.without(&HashSet::from([id])).expect("live");
        assert_eq!(live.count(), 0);
        assert!(live.keys().expect("keys").is_empty());
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(TextSplit::merge(dir.path(), &[live]).expect("merged"), 0);
        let found = search_splits(&[], "freeze", 3, &Filter::default(), 2).await;
        assert!(found.expect("no hits").is_empty());
    }
}
