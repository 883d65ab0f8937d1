//! The simulated log, as far as an operator's state asks it; the rest goes through the world directly.

use super::*;

/// The log as the operator's state sees it; the rest goes through [`World`] directly.
pub(super) struct SimulatedLog(pub(super) Arc<Mutex<World>>);

pub(super) fn elsewhere<T>() -> Result<T, LogError> {
    Err(LogError::Config("the simulation does this itself".into()))
}

#[async_trait]
impl Log for SimulatedLog {
    async fn state_get(&self, key: &StateKey) -> Result<Option<Bytes>, LogError> {
        let world = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(world.state.get(key).cloned())
    }

    async fn create_topic(&self, _: &TopicName, _: TopicConfig) -> Result<(), LogError> {
        elsewhere()
    }
    async fn delete_topic(&self, _: &TopicName) -> Result<(), LogError> {
        elsewhere()
    }
    async fn topics(&self) -> Result<Vec<(TopicName, TopicConfig)>, LogError> {
        elsewhere()
    }
    async fn watermarks(&self, _: &TopicPartition) -> Result<Watermarks, LogError> {
        elsewhere()
    }
    async fn offset_at(&self, _: &TopicPartition, _: i64) -> Result<Offset, LogError> {
        elsewhere()
    }
    async fn fetch(
        &self,
        _: &TopicPartition,
        _: Offset,
        _: FetchLimit,
        _: Duration,
    ) -> Result<Fetched, LogError> {
        elsewhere()
    }
    async fn fetch_records(
        &self,
        _: &TopicPartition,
        _: Offset,
        _: FetchLimit,
        _: Duration,
    ) -> Result<FetchedRecords, LogError> {
        elsewhere()
    }
    async fn committed(&self, _: &GroupId, _: &TopicPartition) -> Result<Option<Offset>, LogError> {
        elsewhere()
    }
    async fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        elsewhere()
    }
    async fn reset_group(
        &self,
        _: &GroupId,
        _: Vec<(TopicPartition, Option<Offset>)>,
    ) -> Result<(), LogError> {
        elsewhere()
    }
    async fn join(&self, _: &GroupId, _: &[TopicName]) -> Result<Box<dyn Member>, LogError> {
        elsewhere()
    }
    fn begin(&self) -> Box<dyn Commit> {
        panic!("the simulation does this itself")
    }
    async fn state_scan(
        &self,
        _: &GroupId,
        _: &str,
        _: &[u8],
        _: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        elsewhere()
    }
    async fn enforce_retention(&self, _: i64) -> Result<u64, LogError> {
        elsewhere()
    }
    async fn close(&self) -> Result<(), LogError> {
        elsewhere()
    }
}
