//! The months of messages: partitions made ahead, the default one emptied, and months gone that are not kept.
//!
//! ```text
//! messages ─┬─ messages_2026_11   made by the migration or by this chore, which is two months ahead
//!           ├─ messages_2026_12
//!           └─ messages_default   what has no month yet; the chore moves it into one
//! ```
//!
//! Only PostgreSQL has partitions; a SQLite file keeps one table, of which old rows are removed. All of it can be done
//! again, or by two processes one after the other: each step looks at what is there, in one transaction under the lock of
//! all tenants. A partition gets its rows after it was attached: attaching checks foreign keys by a query, and that query
//! would be shown nothing where policies hide the conversations of tenants.
//!
//! When a month goes, that is noted in the audit trail of each tenant that had messages in it, in the same transaction. With
//! it go summaries that may hold what was said in it, and conversations in which nothing is left.

use chrono::{DateTime, Datelike, NaiveDate};
use uuid::Uuid;

use super::conversations::Owner;
use super::database::{Catalog, Part};
use super::error::CatalogError;
use super::outbox::{self, ConversationEvent, EventKind};
use super::query::{Row, Why, query};
use crate::ids::TenantId;
use crate::scope::{Internal, TenantScope};

/// Months that are there before they begin.
const AHEAD: i64 = 2;
/// Months that one call makes for what it finds in the default partition; the next call goes on.
const MOVED_MAX: usize = 24;
/// Conversations without messages that one call removes; the next call goes on.
const EMPTY_MAX: i64 = 500;
/// What a month's messages go under in the audit trail.
const ACTION: &str = "messages.month_removed";

/// What was done about months.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageMonths {
    /// Partitions that are new.
    pub made: Vec<String>,
    /// Rows that were in the default partition.
    pub moved: u64,
    /// Partitions that are gone.
    pub dropped: Vec<String>,
    /// Messages that are gone.
    pub messages_removed: u64,
    /// Conversations that are gone, because nothing was left in them.
    pub conversations_removed: u64,
}

/// A month in UTC: months since the year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Month(i64);

impl Month {
    /// The month of a time in UTC milliseconds; `None` where no calendar reaches.
    fn of(ms: i64) -> Option<Self> {
        let at = DateTime::from_timestamp_millis(ms)?;
        Some(Self(i64::from(at.year()) * 12 + i64::from(at.month0())))
    }

    fn year(self) -> i64 {
        self.0.div_euclid(12)
    }

    fn month(self) -> i64 {
        self.0.rem_euclid(12) + 1
    }

    /// When it begins, in UTC milliseconds.
    fn start_ms(self) -> Option<i64> {
        let year = i32::try_from(self.year()).ok()?;
        let month = u32::try_from(self.month()).ok()?;
        let first = NaiveDate::from_ymd_opt(year, month, 1)?.and_hms_opt(0, 0, 0)?;
        Some(first.and_utc().timestamp_millis())
    }

    fn later(self, months: i64) -> Self {
        Self(self.0 + months)
    }

    /// The partition of that month.
    fn partition(self) -> String {
        format!("messages_{:04}_{:02}", self.year(), self.month())
    }

    /// The month of a partition, as [`Month::partition`] names it.
    fn of_partition(name: &str) -> Option<Self> {
        let (year, month) = name.strip_prefix("messages_")?.split_once('_')?;
        let (year, month): (i64, i64) = (year.parse().ok()?, month.parse().ok()?);
        let found = Self(year * 12 + month - 1);
        (found.partition() == name).then_some(found)
    }
}

/// A time that the calendar does not know: the clock is wrong.
fn no_calendar(now: i64) -> CatalogError {
    CatalogError::storage(
        "make the months of messages",
        format!(
            "it is {now} ms since 1970, whose months no calendar has: check the clock of this machine"
        ),
    )
}

impl Catalog {
    /// Makes the months of now and ahead, empties the default partition, and removes months that ended more than `keep`
    /// months before this one began; without `keep` none goes.
    pub async fn keep_message_months_all_tenants(
        &self,
        keep: Option<u32>,
    ) -> Result<MessageMonths, CatalogError> {
        let now = self.now_ms();
        let current = Month::of(now).ok_or_else(|| no_calendar(now))?;
        let mut done = MessageMonths::default();
        if self.is_shared() {
            for ahead in 0..=AHEAD {
                self.make_month(current.later(ahead), &mut done).await?;
            }
            self.empty_default(&mut done).await?;
        }
        if let Some(keep) = keep {
            self.remove_months(current.later(-i64::from(keep)), &mut done)
                .await?;
        }
        Ok(done)
    }

    /// The partitions that there are, by name.
    async fn partitions(&self) -> Result<Vec<String>, CatalogError> {
        names(
            &query(PARTITIONS)
                .fetch_all(self.read_all(Why::Chore))
                .await?,
        )
    }

    /// Makes the partition of a month, if there is none, and moves what the default one has of it.
    async fn make_month(&self, month: Month, done: &mut MessageMonths) -> Result<(), CatalogError> {
        let (Some(from), Some(to)) = (month.start_ms(), month.later(1).start_ms()) else {
            return Err(no_calendar(self.now_ms()));
        };
        let name = month.partition();
        // Without the lock first: nearly always it is there, and nobody has to wait.
        if self.partitions().await?.contains(&name) {
            return Ok(());
        }
        let mut transaction = self.begin(Part::Tenants).await?;
        let rows = query(PARTITIONS).fetch_all(&mut transaction).await?;
        if names(&rows)?.contains(&name) {
            return Ok(());
        }
        // The name is made of digits, and so are the bounds.
        for statement in [
            format!("CREATE TABLE {name} (LIKE messages INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"),
            // Statements name `messages`, whose policy holds for them; this one is for whoever names the partition.
            format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"),
            format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY"),
            format!(
                "CREATE POLICY of_tenant ON {name} USING (tenant_id = current_setting('va.tenant', true) \
                 OR current_setting('va.tenant', true) = '*')"
            ),
            "LOCK TABLE messages_default IN ACCESS EXCLUSIVE MODE".to_owned(),
            "CREATE TABLE messages_moving (LIKE messages)".to_owned(),
        ] {
            query(&statement).execute(&mut transaction).await?;
        }
        let moved = query(
            "WITH moved AS (DELETE FROM messages_default WHERE created_at >= $1 AND created_at < $2 RETURNING *) \
             INSERT INTO messages_moving SELECT * FROM moved",
        )
        .bind(from)
        .bind(to)
        .execute(&mut transaction)
        .await?;
        for statement in [
            format!(
                "ALTER TABLE messages ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to})"
            ),
            format!("INSERT INTO {name} SELECT * FROM messages_moving"),
            "DROP TABLE messages_moving".to_owned(),
        ] {
            query(&statement).execute(&mut transaction).await?;
        }
        transaction.commit().await?;
        done.moved += moved;
        done.made.push(name);
        Ok(())
    }

    /// Makes the months of what is in the default partition. What is of no month that anybody can mean stays there.
    async fn empty_default(&self, done: &mut MessageMonths) -> Result<(), CatalogError> {
        let mut from = 0;
        for _ in 0..MOVED_MAX {
            let row = query(
                "SELECT MIN(created_at) AS first FROM messages_default WHERE created_at BETWEEN $1 AND $2",
            )
            .bind(from)
            .bind(TIME_MAX)
            .fetch_one(self.read_all(Why::Chore))
            .await?;
            let first: Option<i64> = row.try_get("first")?;
            let Some(month) = first.and_then(Month::of) else {
                return Ok(());
            };
            self.make_month(month, done).await?;
            from = month
                .later(1)
                .start_ms()
                .ok_or_else(|| no_calendar(self.now_ms()))?;
        }
        Ok(())
    }

    /// Removes messages of before a month, with what was made of them.
    async fn remove_months(
        &self,
        first_kept: Month,
        done: &mut MessageMonths,
    ) -> Result<(), CatalogError> {
        // More months than a calendar has: nothing is that old.
        let Some(before) = first_kept.start_ms() else {
            return Ok(());
        };
        let old = query("SELECT 1 AS one FROM messages WHERE created_at < $1 LIMIT 1")
            .bind(before)
            .fetch_optional(self.read_all(Why::Chore))
            .await?;
        let mut gone = Vec::new();
        if self.is_shared() {
            gone = self.partitions().await?;
            gone.retain(|name| Month::of_partition(name).is_some_and(|m| m < first_kept));
        }
        if old.is_some() || !gone.is_empty() {
            self.remove_messages(first_kept, before, gone, done).await?;
        }
        self.remove_empty(before, done).await
    }

    async fn remove_messages(
        &self,
        first_kept: Month,
        before: i64,
        gone: Vec<String>,
        done: &mut MessageMonths,
    ) -> Result<(), CatalogError> {
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenants).await?;
        let rows = query(
            "SELECT tenant_id, COUNT(*) AS messages FROM messages WHERE created_at < $1 GROUP BY tenant_id ORDER BY tenant_id",
        )
        .bind(before)
        .fetch_all(&mut transaction)
        .await?;
        for row in &rows {
            let tenant: String = row.try_get("tenant_id")?;
            let messages: i64 = row.try_get("messages")?;
            let detail = format!(
                "{messages} messages of before {:04}-{:02} are gone, as `conversations.keep_months` wants it",
                first_kept.year(),
                first_kept.month()
            );
            query(
                "INSERT INTO audit_events (tenant_id, id, happened_at, actor, action, target, succeeded, detail) \
                 VALUES ($1, $2, $3, 'system', $4, $5, 1, $6)",
            )
            .bind(&tenant)
            .bind(format!("aud_{}", Uuid::now_v7().simple()))
            .bind(now)
            .bind(ACTION)
            .bind(format!("{:04}-{:02}", first_kept.year(), first_kept.month()))
            .bind(detail)
            .execute(&mut transaction)
            .await?;
            done.messages_removed += messages.unsigned_abs();
        }
        // A summary may tell what is to be forgotten; the next one is made of what is left.
        query(
            "UPDATE conversations SET summary = NULL, summary_seq = NULL WHERE summary IS NOT NULL AND created_at < $1",
        )
        .bind(before)
        .execute(&mut transaction)
        .await?;
        for name in &gone {
            query(&format!("DROP TABLE {name}"))
                .execute(&mut transaction)
                .await?;
        }
        // The table of a file, or the default partition.
        query("DELETE FROM messages WHERE created_at < $1")
            .bind(before)
            .execute(&mut transaction)
            .await?;
        transaction.commit().await?;
        done.dropped.extend(gone);
        Ok(())
    }

    /// Removes conversations that were last used before that time and have no message any more.
    async fn remove_empty(
        &self,
        before: i64,
        done: &mut MessageMonths,
    ) -> Result<(), CatalogError> {
        let rows = query(
            "SELECT c.tenant_id, c.id, c.owner FROM conversations c WHERE c.updated_at < $1 AND NOT EXISTS \
             (SELECT 1 FROM messages m WHERE m.tenant_id = c.tenant_id AND m.conversation_id = c.id) \
             ORDER BY c.tenant_id, c.id LIMIT $2",
        )
        .bind(before)
        .bind(EMPTY_MAX)
        .fetch_all(self.read_all(Why::Chore))
        .await?;
        for row in &rows {
            let tenant: String = row.try_get("tenant_id")?;
            let tenant = TenantId::new(tenant)
                .map_err(|error| CatalogError::corrupt("tenant_id", error.to_string()))?;
            let owner = Owner {
                tenant: TenantScope::internal(tenant, Internal::Chore),
                id: row.try_get("owner")?,
            };
            let id: String = row.try_get("id")?;
            let mut transaction = self.begin(Part::Tenant(&owner.tenant)).await?;
            // Something may have been said in it meanwhile.
            let removed = query(
                "DELETE FROM conversations WHERE tenant_id = $1 AND id = $2 AND updated_at < $3",
            )
            .bind(owner.tenant.as_str())
            .bind(&id)
            .bind(before)
            .execute(&mut transaction)
            .await?;
            if removed == 0 {
                continue;
            }
            let event = ConversationEvent::of(EventKind::Deleted, &id);
            outbox::put(&mut transaction, &owner, &[event], self.now_ms()).await?;
            transaction.commit().await?;
            done.conversations_removed += 1;
        }
        Ok(())
    }
}

/// The end of the year 2099: no message is of later, but clocks may be wrong.
const TIME_MAX: i64 = 4_102_444_799_999;

const PARTITIONS: &str = "SELECT CAST(c.relname AS TEXT) AS name FROM pg_inherits i \
    JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = CAST('messages' AS regclass) ORDER BY c.relname";

fn names(rows: &[Row]) -> Result<Vec<String>, CatalogError> {
    rows.iter().map(|row| row.try_get("name")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_have_bounds_and_names() {
        let november = Month::of(1_795_910_400_000).expect("a month");
        assert_eq!(november.partition(), "messages_2026_11");
        assert_eq!(Month::of_partition("messages_2026_11"), Some(november));
        assert_eq!(november.start_ms(), Some(1_793_491_200_000));
        let january = november.later(2);
        assert_eq!(january.partition(), "messages_2027_01");
        let end = january.start_ms().expect("a time");
        assert_eq!(Month::of(end), Some(january));
        assert_eq!(Month::of(end - 1), Some(november.later(1)));
        assert_eq!(
            Month::of(-1),
            Some(Month::of(0).expect("a month").later(-1))
        );
        for other in [
            "messages_default",
            "messages_2026_13",
            "messages_26_1",
            "messages_moving",
        ] {
            assert_eq!(Month::of_partition(other), None, "{other}");
        }
        assert_eq!(Month::of(i64::MAX), None);
    }
}
