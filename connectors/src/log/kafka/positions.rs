//! Where a member reads an assigned partition on.
//!
//! Before a position is told, what its former owner may have left unfinished is ended: a commit's metadata names the
//! transactional id that made it, and an id whose member is gone is fenced. Membership itself is `member.rs`'s business.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use va_catalog::{Offset, TopicPartition};

use super::client::Shared;
use super::member::Membership;
use super::names::Position;
use crate::log::LogError;

/// How long a former owner's transaction may be waited for before it is looked into.
const UNSTABLE: Duration = Duration::from_secs(1);
/// Pause before partitions are looked up again of whose topic nobody knows.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(200);

/// Where to read on. Partitions of a topic that does not exist are left out: one that was deleted just now is about to be
/// taken away again.
pub(super) async fn positions(
    shared: Arc<Shared>,
    membership: Arc<Membership>,
    places: Vec<TopicPartition>,
) -> Result<Vec<(TopicPartition, Offset)>, LogError> {
    ready_producer(&shared, &membership).await?;
    let wanted = places.clone();
    let committed = shared
        .blocking(move |shared| {
            shared.producers.settle(&shared.options)?;
            former_owners_end(shared, &membership, &wanted)
        })
        .await?;
    let mut positions = Vec::with_capacity(places.len());
    for (place, committed) in places.iter().zip(committed) {
        let from = committed.unwrap_or(Position::start_of(0));
        let offset = match shared.settle_position(place, from).await {
            Err(LogError::UnknownTopic(_) | LogError::UnknownPartition { .. }) => continue,
            other => other?,
        };
        positions.push((place.clone(), offset));
    }
    if positions.is_empty() {
        tokio::time::sleep(UNKNOWN_PAUSE).await;
    }
    Ok(positions)
}

/// The member's producer, so that an earlier one with this id is fenced before a position is told.
async fn ready_producer(shared: &Arc<Shared>, membership: &Membership) -> Result<(), LogError> {
    let mut slot = Arc::clone(&membership.producer).lock_owned().await;
    if slot.is_some() {
        return Ok(());
    }
    let id = membership.transactional_id.clone();
    let producer = shared
        .blocking(move |shared| shared.producers.init(&shared.options, &id))
        .await?;
    *slot = Some(producer);
    Ok(())
}

/// Committed positions, after transactions of owners that are gone were ended. Blocks.
fn former_owners_end(
    shared: &Arc<Shared>,
    membership: &Membership,
    places: &[TopicPartition],
) -> Result<Vec<Option<Position>>, LogError> {
    let group = &membership.group;
    let found = match shared.committed_positions(group, places, UNSTABLE) {
        Ok(found) => found,
        // Probably a transaction that is not finished; who began it is known without waiting.
        Err(LogError::Storage(_)) => shared.unstable_positions(group, places)?,
        Err(error) => return Err(error),
    };
    let owners: BTreeSet<&str> = found
        .iter()
        .flatten()
        .filter_map(|committed| committed.producer.as_deref())
        .filter(|id| *id != membership.transactional_id)
        .collect();
    if !owners.is_empty() {
        // A member's client id is its transactional id.
        let alive = shared.group_members(group)?;
        for id in owners {
            if !alive.iter().any(|member| member == id) {
                shared.producers.fence(&shared.options, id)?;
            }
        }
    }
    let found = shared.committed_positions(group, places, shared.timeout())?;
    Ok(found
        .into_iter()
        .map(|committed| committed.map(|committed| committed.position))
        .collect())
}
