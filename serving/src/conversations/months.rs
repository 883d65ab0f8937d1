//! The chore for the months of messages: makes them ahead and removes those that are not kept (`conversations.keep_months`).
//!
//! One process at a time does it, under a lease, once an hour; it is right when two do. What it does is the catalog's
//! business (`store/message_months.rs`).

use std::sync::Arc;
use std::time::Duration;

use crate::platform::Platform;

const INTERVAL: Duration = Duration::from_secs(3_600);

/// Sees to the months now and then until the platform stops.
pub async fn run(platform: Arc<Platform>) {
    let keep = platform.settings.conversations.keep_months;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.stopping().cancelled() => return,
        }
        if !platform.leads("message_months").await {
            continue;
        }
        let done = platform
            .catalog
            .keep_message_months_all_tenants(keep.map(std::num::NonZeroU32::get));
        match done.await {
            Ok(done) => {
                if !done.made.is_empty() || done.moved > 0 {
                    tracing::info!(months = ?done.made, moved = done.moved, "months of messages were made");
                }
                if done.messages_removed > 0 || done.conversations_removed > 0 {
                    tracing::info!(
                        months = ?done.dropped,
                        messages = done.messages_removed,
                        conversations = done.conversations_removed,
                        "messages that are not to be kept any longer are gone"
                    );
                    // The deletions of conversations wait in the outbox.
                    platform.conversations.tell();
                }
                metrics::counter!("va_messages_removed_total").increment(done.messages_removed);
            }
            Err(error) => {
                tracing::warn!(%error, "see to the months of messages; it is tried again in an hour, and until then messages go to the default partition");
            }
        }
    }
}
