//! What an answer has told so far: any number of readers follow it, each at its own pace, from wherever it left off.
//!
//! The events of an answer are few (it is bounded, see `write`), so they are kept until it ends; a slow reader holds up
//! nobody and no memory grows.

use std::sync::Mutex;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use va_catalog::store::Owner;

use super::lock;

/// An answer that is being written.
pub struct Live {
    owner: Owner,
    conversation: String,
    told: Mutex<Vec<(&'static str, Value)>>,
    ended: watch::Sender<bool>,
    /// Ends it.
    pub(super) stop: CancellationToken,
}

impl Live {
    pub(super) fn new(owner: Owner, conversation: &str) -> Self {
        Self {
            owner,
            conversation: conversation.to_owned(),
            told: Mutex::default(),
            ended: watch::Sender::new(false),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn is_of(&self, owner: &Owner, conversation: &str) -> bool {
        self.owner == *owner && self.conversation == conversation
    }

    pub(super) fn tell(&self, name: &'static str, data: Value) {
        lock(&self.told).push((name, data));
        // Wakes readers even though the value stays.
        self.ended.send_modify(|_| ());
    }

    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// The event at that place, once it is there; `None` behind the last one.
    pub async fn event(&self, at: usize) -> Option<(&'static str, Value)> {
        let mut ended = self.ended.subscribe();
        loop {
            // Before the look, so that what is told in between wakes.
            let is_ended = *ended.borrow_and_update();
            let event = lock(&self.told).get(at).cloned();
            if event.is_some() || is_ended {
                return event;
            }
            ended.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use va_catalog::{Internal, TenantId, TenantScope};

    use super::*;

    #[tokio::test]
    async fn readers_follow_from_where_they_left_off() {
        let owner = Owner {
            tenant: TenantScope::internal(TenantId::default_tenant(), Internal::Test),
            id: "usr_a".into(),
        };
        let live = Arc::new(Live::new(owner, "conv_a"));
        let reader = live.clone();
        let second = tokio::spawn(async move { (reader.event(1).await, reader.event(2).await) });
        live.tell("delta", json!(1));
        live.tell("delta", json!(2));
        live.end();
        assert_eq!(live.event(0).await, Some(("delta", json!(1))));
        let told = second.await.expect("it ends");
        assert_eq!(told, (Some(("delta", json!(2))), None));
    }
}
