//! Bringing a collection up to the files of a scan.
//!
//! Reading, comparing and handing over run at the same time, joined by a bounded queue. Then the documents of this run
//! are waited for, and only then what is gone is removed: new content is ready before old content goes, so a renamed
//! file does not vanish from search in between. Every step may be cut off: what was handed over is finished by the
//! server, and the next run finds the rest by its hashes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{ErrorKind, Read, Seek};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use va_catalog::store::DocumentState;
use va_catalog::{ContentHash, DocumentId, Version};

use super::documents::{
    BATCH_BYTES_MAX, Documents, FILES_MAX, ITEMS_MAX, Large, SMALL_BYTES_MAX, Small, SyncError,
    Taken, Trouble,
};
use super::pairs::{Gone, pair};
use super::scan::{FoundFile, Note, Scan};

/// Files that are read and compared together.
const COMPARE_FILES: usize = 250;
/// Such lots at the same time, each on a thread of its own.
const COMPARES: usize = 3;
/// Files between comparing and handing over.
const QUEUE_FILES: usize = 1_000;
/// Batches on their way at the same time.
const HAND_OVERS: usize = 3;
/// Piece of a file that is read at once.
const READ_BYTES: usize = 128 << 10;
/// Content of files up to here stays in memory from comparing to handing over, instead of being read again.
const KEPT_BYTES_MAX: u64 = 32 << 10;
/// Calls of one look at documents that are waited for.
const STANDING_CALLS: usize = 12;
/// Documents of the first of those calls. They become searchable in about the order in which they were handed over, so
/// a few tell whether it is worth asking about more.
const LOOK_FIRST: usize = 16;
/// Every so many looks the pipeline is looked at too.
const TROUBLE_EVERY: u64 = 8;

/// How to go about it.
#[derive(Debug, Clone)]
pub struct Wishes {
    pub meta: BTreeMap<String, String>,
    /// Leave documents whose file is gone.
    pub keep_deleted: bool,
    /// Remove documents also when a whole folder is empty.
    pub allow_empty: bool,
    /// Wait until what was handed over is searchable or has failed.
    pub wait: bool,
    /// Time between two looks while waiting.
    pub poll: Duration,
}

/// Something that happened to one file.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Indexed { uri: String, version: Version },
    Moved { from: String, to: String },
    Removed { uri: String },
    Failed(Note),
}

/// Who is told meanwhile.
pub trait Progress: Send + Sync {
    /// Changes of a followed folder begin to be applied.
    fn begin(&self) {}
    /// So many more files need nothing more to be done.
    fn done(&self, _files: u64) {}
    /// What is going on.
    fn message(&self, _text: String) {}
    /// A file is through.
    fn change(&self, _change: &Change) {}
}

/// What became of the files.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Files that there are, without those that vanished meanwhile.
    pub files: u64,
    pub handed_over: u64,
    /// Handed over and searchable; without the moved ones.
    pub indexed: u64,
    pub unchanged: u64,
    /// From, to.
    pub moved: Vec<(String, String)>,
    pub removed: Vec<String>,
    /// What could not be read, was not taken, or could not be indexed.
    pub failed: Vec<Note>,
    pub skipped: Vec<Note>,
}

/// The report while it is made, so that it is there also when the run is cut off.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Report>);

impl Tally {
    /// The report so far.
    pub fn report(&self) -> MutexGuard<'_, Report> {
        // Counting cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, progress: &dyn Progress, note: Note) {
        progress.change(&Change::Failed(note.clone()));
        self.report().failed.push(note);
    }
}

/// What a run would do.
#[derive(Debug, Default)]
pub struct Plan {
    pub new: Vec<String>,
    pub changed: Vec<String>,
    pub moved: Vec<(String, String)>,
    pub removed: Vec<String>,
    pub unchanged: u64,
    pub failed: Vec<Note>,
    pub skipped: Vec<Note>,
}

/// A file with content that the collection does not have.
struct Fresh {
    file: FoundFile,
    hash: ContentHash,
    size: u64,
    /// Of a file that is small enough.
    bytes: Option<Bytes>,
    changed: bool,
}

/// A document of this run that is not through.
struct Own {
    uri: String,
    version: Version,
    /// Handed over by this run, not by one before it.
    fresh: bool,
}

/// What the stages of a run share.
struct Run<'a> {
    documents: &'a dyn Documents,
    wishes: &'a Wishes,
    progress: &'a dyn Progress,
    tally: &'a Tally,
    limit: u64,
    /// Files that were there when listed and not when read.
    vanished: Mutex<HashSet<String>>,
    /// In the order in which they were handed over.
    own: Mutex<Vec<(DocumentId, Own)>>,
    /// URIs of files that were refused or could not be indexed.
    failed: Mutex<HashSet<String>>,
}

/// Makes the collection hold what the scan found. The outcome is in `tally`, as far as it came.
pub fn sync<'a>(
    documents: &'a dyn Documents,
    scan: Scan,
    wishes: &'a Wishes,
    progress: &'a dyn Progress,
    tally: &'a Tally,
) -> BoxFuture<'a, Result<(), SyncError>> {
    // Boxed: the compiler cannot prove of the nested streams themselves that they may be sent to another thread.
    sync_all(documents, scan, wishes, progress, tally).boxed()
}

async fn sync_all(
    documents: &dyn Documents,
    mut scan: Scan,
    wishes: &Wishes,
    progress: &dyn Progress,
    tally: &Tally,
) -> Result<(), SyncError> {
    refuse_empty(documents, &scan, wishes).await?;
    let files = std::mem::take(&mut scan.files);
    {
        let mut report = tally.report();
        report.files += (files.len() + scan.refused.len()) as u64;
        report.skipped.append(&mut scan.skipped);
    }
    progress.done(scan.refused.len() as u64);
    for note in &scan.refused {
        tally.fail(progress, note.clone());
    }
    let run = Run::begin(documents, wishes, progress, tally).await?;
    let mut present: HashSet<String> = files.iter().map(|file| file.uri.clone()).collect();
    let (queue, queued) = mpsc::channel(QUEUE_FILES);
    let ((), new, held) = tokio::try_join!(
        run.compare(files, queue, true),
        run.hand_over_all(queued),
        run.held_in(&scan)
    )?;
    if wishes.wait {
        run.wait().await?;
    }
    for uri in lock(&run.vanished).drain() {
        present.remove(&uri);
    }
    run.remove_gone(&scan, held, &present, &new).await
}

/// Counts documents that were handed over another way, and waits for them as the wishes say.
pub async fn wait_for(
    documents: &dyn Documents,
    handed_over: Vec<(String, Result<Taken, String>)>,
    wishes: &Wishes,
    progress: &dyn Progress,
    tally: &Tally,
) -> Result<(), SyncError> {
    let run = Run::begin(documents, wishes, progress, tally).await?;
    for (uri, outcome) in handed_over {
        run.took(uri, outcome);
    }
    if wishes.wait {
        run.wait().await?;
    }
    Ok(())
}

/// Finds out what [`sync()`] would do, and does nothing.
pub async fn plan(
    documents: &dyn Documents,
    mut scan: Scan,
    wishes: &Wishes,
    progress: &dyn Progress,
) -> Result<Plan, SyncError> {
    refuse_empty(documents, &scan, wishes).await?;
    let tally = Tally::default();
    let files = std::mem::take(&mut scan.files);
    let run = Run::begin(documents, wishes, progress, &tally).await?;
    let mut present: HashSet<String> = files.iter().map(|file| file.uri.clone()).collect();
    let (queue, mut queued) = mpsc::channel(QUEUE_FILES);
    let collect = async {
        let mut fresh: Vec<Fresh> = Vec::new();
        while let Some(file) = queued.recv().await {
            progress.done(1);
            fresh.push(Fresh {
                bytes: None,
                ..file
            });
        }
        Ok::<_, SyncError>(fresh)
    };
    let ((), fresh, held) = tokio::try_join!(
        run.compare(files, queue, false),
        collect,
        run.held_in(&scan)
    )?;
    for uri in lock(&run.vanished).drain() {
        present.remove(&uri);
    }
    let mut plan = Plan {
        unchanged: tally.report().unchanged,
        failed: std::mem::take(&mut scan.refused),
        skipped: std::mem::take(&mut scan.skipped),
        ..Plan::default()
    };
    plan.failed.append(&mut tally.report().failed);
    let mut moved_to: HashSet<&str> = HashSet::new();
    let gone = run.gone(&scan, held, &present).await?;
    let new = fresh.iter().filter(|fresh| !fresh.changed);
    let new = new.map(|fresh| (&fresh.hash, fresh.file.uri.as_str()));
    let to = pair(&gone, new);
    for (gone, to) in gone.iter().zip(to) {
        match to {
            Some(to) => {
                moved_to.insert(to);
                plan.moved.push((gone.uri.clone(), to.to_owned()));
            }
            None => plan.removed.push(gone.uri.clone()),
        }
    }
    for fresh in &fresh {
        if fresh.changed {
            plan.changed.push(fresh.file.uri.clone());
        } else if !moved_to.contains(fresh.file.uri.as_str()) {
            plan.new.push(fresh.file.uri.clone());
        }
    }
    Ok(plan)
}

/// An empty folder is more often one that is not mounted than one that somebody emptied.
async fn refuse_empty(
    documents: &dyn Documents,
    scan: &Scan,
    wishes: &Wishes,
) -> Result<(), SyncError> {
    if wishes.allow_empty || wishes.keep_deleted {
        return Ok(());
    }
    for area in scan.areas.iter().filter(|area| area.whole) {
        let files = scan.files.iter().map(|file| &file.uri);
        let mut known = files.chain(scan.refused.iter().map(|note| &note.uri));
        if known.any(|uri| area.holds(uri)) {
            continue;
        }
        let held = documents.under(&area.uri).await?;
        let held = held.iter().filter(|(_, uri)| area.holds(uri)).count();
        if held > 0 {
            return Err(SyncError(format!(
                "`{}` holds no file, but the collection holds {held} documents from it. If it is only not mounted, \
                 mount it; to remove the documents, allow it with --allow-empty",
                area.uri
            )));
        }
    }
    Ok(())
}

impl<'a> Run<'a> {
    async fn begin(
        documents: &'a dyn Documents,
        wishes: &'a Wishes,
        progress: &'a dyn Progress,
        tally: &'a Tally,
    ) -> Result<Self, SyncError> {
        Ok(Self {
            documents,
            wishes,
            progress,
            tally,
            limit: documents.check(&[]).await?.upload_bytes_max,
            vanished: Mutex::default(),
            own: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// Hashes the files and queues those that the collection does not have.
    async fn compare(
        &self,
        files: Vec<FoundFile>,
        queue: mpsc::Sender<Fresh>,
        wait_for_unchanged: bool,
    ) -> Result<(), SyncError> {
        let mut files = files.into_iter().peekable();
        let mut lots = Vec::new();
        while files.peek().is_some() {
            lots.push(files.by_ref().take(COMPARE_FILES).collect::<Vec<_>>());
        }
        let mut compared = futures::stream::iter(lots)
            .map(|lot| self.compare_lot(lot).boxed())
            .buffered(COMPARES);
        while let Some(lot) = compared.next().await {
            let (fresh, pending) = lot?;
            if wait_for_unchanged {
                lock(&self.own).extend(pending);
            }
            for fresh in fresh {
                if queue.send(fresh).await.is_err() {
                    // The other side has failed, and its reason is the one to tell.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn compare_lot(
        &self,
        lot: Vec<FoundFile>,
    ) -> Result<(Vec<Fresh>, Vec<(DocumentId, Own)>), SyncError> {
        let limit = self.limit;
        let hashed = tokio::task::spawn_blocking(move || {
            lot.into_iter()
                .map(|file| {
                    let seen = look_at(&file.path, limit);
                    (file, seen)
                })
                .collect::<Vec<_>>()
        })
        .await
        .map_err(SyncError::new)?;
        let mut known = Vec::with_capacity(hashed.len());
        let mut contents = Vec::with_capacity(hashed.len());
        for (file, seen) in hashed {
            match seen {
                Seen::Content { hash, size, bytes } => {
                    contents.push((file.uri.clone(), hash));
                    known.push((file, size, bytes));
                }
                Seen::Vanished => self.vanish(file.uri),
                Seen::Refused(reason) => self.refuse(file.uri, reason),
            }
        }
        let checked = self.documents.check(&contents).await?;
        let same: HashSet<&str> = checked
            .unchanged
            .iter()
            .map(|held| held.uri.as_str())
            .collect();
        let changed: HashSet<&str> = checked.changed.iter().map(String::as_str).collect();
        let fresh: Vec<Fresh> = known
            .into_iter()
            .zip(contents)
            .filter(|((file, ..), _)| !same.contains(file.uri.as_str()))
            .map(|((file, size, bytes), (_, hash))| Fresh {
                changed: changed.contains(file.uri.as_str()),
                file,
                hash,
                size,
                bytes,
            })
            .collect();
        let unchanged = checked.unchanged.len() as u64;
        self.tally.report().unchanged += unchanged;
        let pending: Vec<_> = checked
            .unchanged
            .into_iter()
            .filter(|held| held.state.is_pending())
            .map(|held| {
                let own = Own {
                    uri: held.uri,
                    version: held.version,
                    fresh: false,
                };
                (held.id, own)
            })
            .collect();
        self.progress.done(unchanged - pending.len() as u64);
        Ok((fresh, pending))
    }

    fn vanish(&self, uri: String) {
        self.progress.done(1);
        let mut report = self.tally.report();
        report.files = report.files.saturating_sub(1);
        lock(&self.vanished).insert(uri);
    }

    fn refuse(&self, uri: String, reason: String) {
        self.progress.done(1);
        lock(&self.failed).insert(uri.clone());
        self.tally.fail(self.progress, Note { uri, reason });
    }

    /// Hands over what is queued; returns hash and URI of the documents that are new.
    async fn hand_over_all(
        &self,
        queued: mpsc::Receiver<Fresh>,
    ) -> Result<Vec<(ContentHash, String)>, SyncError> {
        let batches = ReceiverStream::new(queued).ready_chunks(FILES_MAX);
        let mut handed = batches
            .map(|batch| self.hand_over(batch).boxed())
            .buffer_unordered(HAND_OVERS);
        let mut new = Vec::new();
        while let Some(batch) = handed.next().await {
            new.extend(batch?);
        }
        Ok(new)
    }

    async fn hand_over(&self, batch: Vec<Fresh>) -> Result<Vec<(ContentHash, String)>, SyncError> {
        let mut new = Vec::new();
        let mut large = Vec::new();
        let mut lots: Vec<(u64, Vec<Fresh>)> = Vec::new();
        for fresh in batch {
            if !fresh.changed {
                new.push((fresh.hash.clone(), fresh.file.uri.clone()));
            }
            if fresh.size > SMALL_BYTES_MAX {
                large.push(fresh);
                continue;
            }
            match lots.last_mut() {
                Some((bytes, lot)) if *bytes + fresh.size <= BATCH_BYTES_MAX as u64 => {
                    *bytes += fresh.size;
                    lot.push(fresh);
                }
                _ => lots.push((fresh.size, vec![fresh])),
            }
        }
        for (_, lot) in lots {
            large.extend(self.hand_over_small(lot).await?);
        }
        for fresh in large {
            self.hand_over_large(&fresh).await;
        }
        Ok(new)
    }

    /// Returns files that have grown meanwhile.
    async fn hand_over_small(&self, lot: Vec<Fresh>) -> Result<Vec<Fresh>, SyncError> {
        let read = tokio::task::spawn_blocking(move || {
            lot.into_iter()
                .map(|mut fresh| {
                    let bytes = match fresh.bytes.take() {
                        Some(bytes) => Ok(Some(bytes)),
                        None => read_small(&fresh.file.path),
                    };
                    (fresh, bytes)
                })
                .collect::<Vec<_>>()
        })
        .await
        .map_err(SyncError::new)?;
        let mut grown = Vec::new();
        let mut small = Vec::with_capacity(read.len());
        let mut left = BATCH_BYTES_MAX;
        for (fresh, bytes) in read {
            match bytes {
                Ok(Some(bytes)) if bytes.len() <= left => {
                    left -= bytes.len();
                    small.push(Small {
                        uri: fresh.file.uri,
                        name: fresh.file.name,
                        meta: self.wishes.meta.clone(),
                        bytes,
                    });
                }
                Ok(_) => grown.push(fresh),
                Err(error) if error.kind() == ErrorKind::NotFound => self.vanish(fresh.file.uri),
                Err(error) => self.refuse(fresh.file.uri, format!("read: {error}")),
            }
        }
        if small.is_empty() {
            return Ok(grown);
        }
        let uris: Vec<String> = small.iter().map(|file| file.uri.clone()).collect();
        let outcomes = self.documents.hand_over(small).await?;
        for (uri, outcome) in uris.into_iter().zip(outcomes) {
            self.took(uri, outcome);
        }
        Ok(grown)
    }

    async fn hand_over_large(&self, fresh: &Fresh) {
        let file = Large {
            uri: &fresh.file.uri,
            name: &fresh.file.name,
            meta: &self.wishes.meta,
            path: &fresh.file.path,
        };
        let outcome = self.documents.hand_over_large(file).await;
        if outcome.is_err() && matches!(fresh.file.path.try_exists(), Ok(false)) {
            return self.vanish(fresh.file.uri.clone());
        }
        self.took(fresh.file.uri.clone(), outcome);
    }

    fn took(&self, uri: String, outcome: Result<Taken, String>) {
        match outcome {
            Ok(taken) => {
                let handed_over = {
                    let mut report = self.tally.report();
                    report.handed_over += 1;
                    report.handed_over
                };
                self.progress.message(format!("{handed_over} handed over"));
                if !self.wishes.wait {
                    self.progress.done(1);
                }
                let own = Own {
                    uri,
                    version: taken.version,
                    fresh: true,
                };
                lock(&self.own).push((taken.id, own));
            }
            Err(reason) => self.refuse(uri, reason),
        }
    }

    /// Waits for the documents of this run, and of no other.
    async fn wait(&self) -> Result<(), SyncError> {
        let own = std::mem::take(&mut *lock(&self.own));
        let mut open: VecDeque<DocumentId> = own.iter().map(|(id, _)| *id).collect();
        let mut own: HashMap<DocumentId, Own> = own.into_iter().collect();
        let mut looks = tokio::time::interval(self.wishes.poll);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look: u64 = 0;
        while !open.is_empty() {
            looks.tick().await;
            self.progress
                .message(format!("{} to be indexed", open.len()));
            let mut size = LOOK_FIRST;
            for _ in 0..STANDING_CALLS {
                let part: Vec<DocumentId> = open.drain(..open.len().min(size)).collect();
                let pending = self.settle(part, &mut own).await?;
                let worth_it = pending.len() * 2 < size;
                open.extend(pending);
                if open.is_empty() || !worth_it {
                    break;
                }
                size = (size * 2).min(ITEMS_MAX);
            }
            look += 1;
            if !open.is_empty() && look.is_multiple_of(TROUBLE_EVERY) {
                self.tell_trouble().await?;
            }
        }
        Ok(())
    }

    /// Counts those of the documents that are through, and takes them out of `own`; returns the others.
    async fn settle(
        &self,
        part: Vec<DocumentId>,
        own: &mut HashMap<DocumentId, Own>,
    ) -> Result<Vec<DocumentId>, SyncError> {
        let standing = self.documents.standing(&part).await?;
        let standing: HashMap<_, _> = standing.iter().map(|s| (s.id, s)).collect();
        let mut pending = Vec::new();
        for id in part {
            let Some(document) = own.get(&id) else {
                continue;
            };
            let standing = standing.get(&id);
            let ours = standing.filter(|s| s.version == document.version);
            match ours.map(|s| s.state) {
                Some(DocumentState::Uploading | DocumentState::Processing) => {
                    pending.push(id);
                    continue;
                }
                Some(DocumentState::Failed) => {
                    let reason = ours.and_then(|s| s.error.clone()).unwrap_or_default();
                    if !document.fresh {
                        self.tally.report().unchanged -= 1;
                    }
                    self.refuse(document.uri.clone(), reason);
                }
                // Ready, or somebody else has replaced or removed it since.
                _ => self.indexed(document),
            }
            own.remove(&id);
        }
        Ok(pending)
    }

    fn indexed(&self, document: &Own) {
        self.progress.done(1);
        if document.fresh {
            self.tally.report().indexed += 1;
            self.progress.change(&Change::Indexed {
                uri: document.uri.clone(),
                version: document.version,
            });
        }
    }

    async fn tell_trouble(&self) -> Result<(), SyncError> {
        match self.documents.trouble().await? {
            None => Ok(()),
            Some(Trouble::Restarting(reason)) => {
                self.progress
                    .message(format!("indexing restarts: {reason}"));
                Ok(())
            }
            Some(Trouble::Failed(reason)) => Err(SyncError(format!(
                "the index pipeline has failed: {reason}; nothing is lost: mend the cause, then `va pipeline run index`"
            ))),
        }
    }

    /// The documents in the scan's areas, if those that are gone are to be removed.
    async fn held_in(&self, scan: &Scan) -> Result<BTreeMap<String, DocumentId>, SyncError> {
        let mut held = BTreeMap::new();
        if self.wishes.keep_deleted {
            return Ok(held);
        }
        for area in &scan.areas {
            let under = self.documents.under(&area.uri).await?;
            let under = under.into_iter().filter(|(_, uri)| area.holds(uri));
            held.extend(under.map(|(id, uri)| (uri, id)));
        }
        Ok(held)
    }

    /// Those of the documents whose file is gone. A path that exists is never gone, whatever the scan found.
    async fn gone(
        &self,
        scan: &Scan,
        held: BTreeMap<String, DocumentId>,
        present: &HashSet<String>,
    ) -> Result<Vec<Gone>, SyncError> {
        let mut missing = held;
        missing.retain(|uri, _| !present.contains(uri) && !scan.is_unread(uri));
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let ids = tokio::task::spawn_blocking(move || {
            let gone = missing.iter().filter(|(uri, _)| is_gone(Path::new(uri)));
            gone.map(|(_, id)| *id).collect::<Vec<DocumentId>>()
        })
        .await
        .map_err(SyncError::new)?;
        let mut gone = Vec::with_capacity(ids.len());
        for part in ids.chunks(ITEMS_MAX) {
            for standing in self.documents.standing(part).await? {
                gone.push(Gone {
                    id: standing.id,
                    uri: standing.uri,
                    hash: standing.hash,
                });
            }
        }
        gone.sort_by(|a, b| a.uri.cmp(&b.uri));
        Ok(gone)
    }

    /// Removes what is gone. `new`: hash and URI of the documents that came with this run.
    async fn remove_gone(
        &self,
        scan: &Scan,
        held: BTreeMap<String, DocumentId>,
        present: &HashSet<String>,
        new: &[(ContentHash, String)],
    ) -> Result<(), SyncError> {
        let mut gone = self.gone(scan, held, present).await?;
        let (lost, new): (Vec<_>, Vec<_>) = {
            let failed = lock(&self.failed);
            new.iter().partition(|(_, uri)| failed.contains(uri))
        };
        // Content whose new place cannot be indexed stays searchable at its old one until that is mended.
        gone.retain(|gone| !lost.iter().any(|(hash, _)| *hash == gone.hash));
        if gone.is_empty() {
            return Ok(());
        }
        self.progress
            .message(format!("{} to be removed", gone.len()));
        let ids: Vec<DocumentId> = gone.iter().map(|gone| gone.id).collect();
        for part in ids.chunks(ITEMS_MAX) {
            self.documents.remove(part).await?;
        }
        if self.wishes.wait {
            self.wait_removed(ids.into()).await?;
        }
        let to = pair(&gone, new.iter().map(|(hash, uri)| (hash, uri.as_str())));
        let mut report = self.tally.report();
        for (gone, to) in gone.iter().zip(to) {
            match to {
                Some(to) => {
                    let (from, to) = (gone.uri.clone(), to.to_owned());
                    self.progress.change(&Change::Moved {
                        from: from.clone(),
                        to: to.clone(),
                    });
                    report.moved.push((from, to));
                    report.indexed = report.indexed.saturating_sub(1);
                }
                None => {
                    let uri = gone.uri.clone();
                    self.progress.change(&Change::Removed { uri: uri.clone() });
                    report.removed.push(uri);
                }
            }
        }
        Ok(())
    }

    async fn wait_removed(&self, mut open: VecDeque<DocumentId>) -> Result<(), SyncError> {
        let mut looks = tokio::time::interval(self.wishes.poll);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look: u64 = 0;
        while !open.is_empty() {
            looks.tick().await;
            for _ in 0..open.len().div_ceil(ITEMS_MAX).min(STANDING_CALLS) {
                let part: Vec<DocumentId> = open.drain(..open.len().min(ITEMS_MAX)).collect();
                let standing = self.documents.standing(&part).await?;
                open.extend(
                    standing
                        .iter()
                        .filter(|s| s.state == DocumentState::Deleting)
                        .map(|s| s.id),
                );
            }
            look += 1;
            if !open.is_empty() && look.is_multiple_of(TROUBLE_EVERY) {
                self.tell_trouble().await?;
            }
        }
        Ok(())
    }
}

enum Seen {
    Content {
        hash: ContentHash,
        size: u64,
        bytes: Option<Bytes>,
    },
    Vanished,
    Refused(String),
}

/// The file's hash, without reading more than `limit` bytes.
fn look_at(path: &Path, limit: u64) -> Seen {
    match hash_file(path, limit) {
        Ok(Some((hash, size, bytes))) => Seen::Content { hash, size, bytes },
        Ok(None) => Seen::Refused(crate::ingest::too_large(limit)),
        Err(error) if error.kind() == ErrorKind::NotFound => Seen::Vanished,
        Err(error) => Seen::Refused(format!("read: {error}")),
    }
}

/// Hash, size, and the content itself of a file that is small; `None` when the file is larger than `limit`.
fn hash_file(
    path: &Path,
    limit: u64,
) -> std::io::Result<Option<(ContentHash, u64, Option<Bytes>)>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Ok(None);
    }
    if length <= KEPT_BYTES_MAX.min(limit) {
        let mut bytes = Vec::with_capacity(length as usize + 1);
        Read::take(&mut file, length + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= length {
            let size = bytes.len() as u64;
            return Ok(Some((
                hash_of(Sha256::new_with_prefix(&bytes))?,
                size,
                Some(bytes.into()),
            )));
        }
        // It grows: as a large one, from the beginning.
        file.rewind()?;
    }
    let mut hasher = Sha256::new();
    let mut piece = vec![0; READ_BYTES.min(length as usize + 1)];
    let mut size = 0_u64;
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => {
                size += read as u64;
                if size > limit {
                    return Ok(None);
                }
                hasher.update(&piece[..read]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some((hash_of(hasher)?, size, None)))
}

fn hash_of(hasher: Sha256) -> std::io::Result<ContentHash> {
    ContentHash::new(hex(&hasher.finalize())).map_err(std::io::Error::other)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// `None` when the file is no small one any more.
fn read_small(path: &Path) -> std::io::Result<Option<Bytes>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(SMALL_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= SMALL_BYTES_MAX).then(|| bytes.into()))
}

/// Whether there is certainly no file at the path any more.
fn is_gone(path: &Path) -> bool {
    match path.metadata() {
        Ok(found) => found.is_dir(),
        Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
