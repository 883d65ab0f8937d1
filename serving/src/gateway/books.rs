//! What has been spent and what is reserved: the sum of the events of `llm.usage`.
//!
//! Plain data and one function, [`Books::apply`], that takes events one by one. It is the same for events that happen now
//! and for those read from the log after a start, so both ways lead to the same sums. Money is in pico-units (10⁻¹²).

use std::collections::{HashMap, HashSet, VecDeque};

use serde::Serialize;
use va_catalog::settings::llm::{Amount, BudgetSettings, BudgetWindow};

const DAY_MS: i64 = 24 * 3_600_000;

/// Whose money it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    Tenant(String),
    /// A key of a tenant.
    Key(String, String),
}

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Reserved,
    Settled,
    Released,
}

/// An event, as far as the books need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub tenant: String,
    pub key: Option<String>,
    /// The same at the beginning and at the end.
    pub reservation_id: String,
    pub cost: i128,
    pub at_ms: i64,
}

/// A reservation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    scopes: Vec<Scope>,
    cost: i128,
}

/// What one scope spent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Spent {
    total: i128,
    /// In the window that begins then.
    month: (i64, i128),
    week: (i64, i128),
    day: (i64, i128),
    calls: u64,
    reserved: i128,
}

/// How many ends of reservations are remembered. A commit whose end was in doubt may have been written twice, and what it
/// held follows itself within one batch, which is not longer than this.
const ENDED_MAX: usize = 32_768;

/// The sums.
#[derive(Debug, Default)]
pub struct Books {
    spent: HashMap<Scope, Spent>,
    open: HashMap<String, Open>,
    ended: HashSet<String>,
    /// The same, oldest first.
    ended_order: VecDeque<String>,
}

/// Why a reservation is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    pub budget: BudgetSettings,
    pub spent: i128,
    pub reserved: i128,
    /// When the budget begins anew, UTC milliseconds.
    pub resets_at: Option<i64>,
}

/// How a budget stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BudgetState {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub window: BudgetWindow,
    pub amount: String,
    pub spent: String,
    pub reserved: String,
    /// UTC milliseconds.
    pub resets_at: Option<i64>,
}

/// What a tenant has spent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TenantSpent {
    pub day: String,
    pub month: String,
    pub total: String,
    pub reserved: String,
    /// Calls that were settled.
    pub calls: u64,
}

impl Books {
    /// Takes an event. One that was taken before, and the end of a reservation that is not known, change no sum twice.
    pub fn apply(&mut self, entry: &Entry) {
        let id = entry.reservation_id.clone();
        match entry.kind {
            Kind::Reserved => {
                if self.open.contains_key(&id) || self.ended.contains(&id) {
                    return;
                }
                let scopes = scopes(&entry.tenant, entry.key.as_deref());
                for scope in &scopes {
                    self.spent.entry(scope.clone()).or_default().reserved += entry.cost;
                }
                let cost = entry.cost;
                self.open.insert(id, Open { scopes, cost });
            }
            Kind::Settled | Kind::Released => {
                let Some(open) = self.open.remove(&id) else {
                    return;
                };
                for scope in open.scopes {
                    let spent = self.spent.entry(scope).or_default();
                    spent.reserved -= open.cost;
                    if entry.kind == Kind::Settled {
                        spent.add(entry.cost, entry.at_ms);
                    }
                }
                self.remember(id);
            }
        }
    }

    fn remember(&mut self, id: String) {
        self.ended.insert(id.clone());
        self.ended_order.push_back(id);
        if self.ended_order.len() > ENDED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    /// Whether the money for a call is there: `Ok`, or the first budget that does not allow it. Nothing is changed.
    pub fn allows(
        &self,
        budgets: &[&BudgetSettings],
        cost: i128,
        now_ms: i64,
    ) -> Result<(), Exceeded> {
        for budget in budgets {
            let (spent, reserved) = self.of(budget, now_ms);
            // What costs nothing is allowed whatever has been spent.
            if cost > 0 && spent + reserved + cost > budget.amount.picos() {
                return Err(Exceeded {
                    budget: (*budget).clone(),
                    spent,
                    reserved,
                    resets_at: window_end(budget.window, now_ms),
                });
            }
        }
        Ok(())
    }

    /// How a budget stands.
    pub fn budget(&self, budget: &BudgetSettings, now_ms: i64) -> BudgetState {
        let (spent, reserved) = self.of(budget, now_ms);
        BudgetState {
            key: budget.key.clone(),
            window: budget.window,
            amount: budget.amount.to_string(),
            spent: Amount::from_picos(spent).to_string(),
            reserved: Amount::from_picos(reserved).to_string(),
            resets_at: window_end(budget.window, now_ms),
        }
    }

    /// What a tenant has spent.
    pub fn tenant(&self, tenant: &str, now_ms: i64) -> TenantSpent {
        let scope = Scope::Tenant(tenant.to_owned());
        let none = Spent::default();
        let spent = self.spent.get(&scope).unwrap_or(&none);
        let text = |picos: i128| Amount::from_picos(picos).to_string();
        TenantSpent {
            day: text(spent.within(BudgetWindow::Day, now_ms)),
            month: text(spent.within(BudgetWindow::Month, now_ms)),
            total: text(spent.total),
            reserved: text(spent.reserved),
            calls: spent.calls,
        }
    }

    /// Whether the reservation has not ended.
    pub fn is_open(&self, reservation_id: &str) -> bool {
        self.open.contains_key(reservation_id)
    }

    fn of(&self, budget: &BudgetSettings, now_ms: i64) -> (i128, i128) {
        let scope = match &budget.key {
            Some(key) => Scope::Key(budget.tenant.clone(), key.clone()),
            None => Scope::Tenant(budget.tenant.clone()),
        };
        self.spent.get(&scope).map_or((0, 0), |spent| {
            (spent.within(budget.window, now_ms), spent.reserved)
        })
    }
}

impl Spent {
    fn add(&mut self, cost: i128, at_ms: i64) {
        self.total += cost;
        self.calls += 1;
        for (window, sum) in [
            (BudgetWindow::Month, &mut self.month),
            (BudgetWindow::Week, &mut self.week),
            (BudgetWindow::Day, &mut self.day),
        ] {
            let begin = window_begin(window, at_ms);
            // Events of several processes may come a little out of order; those of a window that is over are not needed.
            if begin > sum.0 {
                *sum = (begin, 0);
            }
            if begin == sum.0 {
                sum.1 += cost;
            }
        }
    }

    fn within(&self, window: BudgetWindow, now_ms: i64) -> i128 {
        let (begin, sum) = match window {
            BudgetWindow::Total => return self.total,
            BudgetWindow::Month => self.month,
            BudgetWindow::Week => self.week,
            BudgetWindow::Day => self.day,
        };
        if begin == window_begin(window, now_ms) {
            sum
        } else {
            0
        }
    }
}

fn scopes(tenant: &str, key: Option<&str>) -> Vec<Scope> {
    let key = key.map(|key| Scope::Key(tenant.to_owned(), key.to_owned()));
    std::iter::once(Scope::Tenant(tenant.to_owned()))
        .chain(key)
        .collect()
}

/// When the window that holds this time began.
fn window_begin(window: BudgetWindow, at_ms: i64) -> i64 {
    match window {
        BudgetWindow::Total => i64::MIN,
        BudgetWindow::Day => at_ms.div_euclid(DAY_MS) * DAY_MS,
        // The first day of 1970 was a Thursday.
        BudgetWindow::Week => {
            (at_ms.div_euclid(DAY_MS) + 3).div_euclid(7) * 7 * DAY_MS - 3 * DAY_MS
        }
        BudgetWindow::Month => {
            let day = chrono::DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
            let (year, month) = (chrono::Datelike::year(&day), chrono::Datelike::month(&day));
            month_begin(year, month)
        }
    }
}

/// When the window that holds this time ends.
fn window_end(window: BudgetWindow, at_ms: i64) -> Option<i64> {
    match window {
        BudgetWindow::Total => None,
        BudgetWindow::Day => Some(window_begin(window, at_ms) + DAY_MS),
        BudgetWindow::Week => Some(window_begin(window, at_ms) + 7 * DAY_MS),
        BudgetWindow::Month => {
            // A month has at most 31 days, and two have more than 32.
            Some(window_begin(
                window,
                window_begin(window, at_ms) + 32 * DAY_MS,
            ))
        }
    }
}

fn month_begin(year: i32, month: u32) -> i64 {
    chrono::NaiveDate::from_ymd_opt(year, month, 1).map_or(i64::MIN, |day| {
        day.and_time(chrono::NaiveTime::MIN)
            .and_utc()
            .timestamp_millis()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(day: &str) -> i64 {
        day.parse::<va_catalog::settings::llm::Date>()
            .expect("a day")
            .begin_ms()
    }

    fn entry(kind: Kind, id: &str, cost: i128, at_ms: i64) -> Entry {
        Entry {
            kind,
            tenant: "shop".into(),
            key: Some("key_1".into()),
            reservation_id: id.into(),
            cost,
            at_ms,
        }
    }

    fn budget(key: Option<&str>, picos: i128, window: BudgetWindow) -> BudgetSettings {
        BudgetSettings {
            tenant: "shop".into(),
            key: key.map(Into::into),
            amount: Amount::from_picos(picos),
            window,
        }
    }

    #[test]
    fn windows_begin_and_end_by_utc() {
        let at = ms("2026-12-31") + 3_600_000;
        assert_eq!(window_begin(BudgetWindow::Month, at), ms("2026-12-01"));
        assert_eq!(window_end(BudgetWindow::Month, at), Some(ms("2027-01-01")));
        assert_eq!(
            window_end(BudgetWindow::Month, ms("2027-01-31")),
            Some(ms("2027-02-01"))
        );
        assert_eq!(window_begin(BudgetWindow::Day, at), ms("2026-12-31"));
        assert_eq!(window_end(BudgetWindow::Day, at), Some(ms("2027-01-01")));
        assert_eq!(window_end(BudgetWindow::Total, at), None);
        // 2026-12-31 is a Thursday.
        assert_eq!(window_begin(BudgetWindow::Week, at), ms("2026-12-28"));
        assert_eq!(window_end(BudgetWindow::Week, at), Some(ms("2027-01-04")));
    }

    #[test]
    fn a_reservation_counts_until_it_ends_and_then_what_it_took() {
        let now = ms("2026-12-05");
        let mut books = Books::default();
        let day = budget(None, 100, BudgetWindow::Day);
        let key = budget(Some("key_1"), 70, BudgetWindow::Month);
        let other = budget(Some("key_2"), 10, BudgetWindow::Total);
        let all = [&day, &key, &other];
        assert_eq!(
            books.allows(&all, 11, now).map_err(|e| e.budget),
            Err(other.clone())
        );
        let all = [&day, &key];
        assert_eq!(books.allows(&all, 60, now), Ok(()));
        books.apply(&entry(Kind::Reserved, "a", 60, now));
        let refused = books
            .allows(&all, 11, now)
            .expect_err("60 of 70 are reserved");
        assert_eq!((refused.spent, refused.reserved), (0, 60));
        assert_eq!(refused.resets_at, Some(ms("2027-01-01")));
        books.apply(&entry(Kind::Settled, "a", 25, now));
        // Told twice: once is enough.
        books.apply(&entry(Kind::Settled, "a", 25, now));
        assert_eq!(books.allows(&all, 45, now), Ok(()));
        books.apply(&entry(Kind::Reserved, "b", 45, now));
        books.apply(&entry(Kind::Released, "b", 0, now));
        assert_eq!(books.allows(&all, 45, now), Ok(()));
        assert!(books.allows(&all, 46, now).is_err());
        // What costs nothing needs no money.
        books.apply(&entry(Kind::Reserved, "c", 100, now));
        assert_eq!(books.allows(&all, 0, now), Ok(()));
        books.apply(&entry(Kind::Settled, "c", 100, now));

        let spent = books.tenant("shop", now);
        assert_eq!((spent.day.as_str(), spent.calls), ("0.000000000125", 2));
        // The next day, and the next month, begin with nothing.
        let tomorrow = now + DAY_MS;
        assert_eq!(books.tenant("shop", tomorrow).day, "0");
        assert_eq!(books.tenant("shop", tomorrow).month, "0.000000000125");
        let january = ms("2027-01-01");
        assert_eq!(books.tenant("shop", january).month, "0");
        assert_eq!(books.allows(&all, 70, january), Ok(()));
        assert_eq!(books.tenant("shop", january).total, "0.000000000125");
        assert_eq!(books.tenant("else", now).total, "0");
    }

    #[test]
    fn read_again_the_events_give_the_same_books() {
        let now = ms("2026-12-05");
        let mut entries = Vec::new();
        for n in 0..200i64 {
            let name = n.to_string();
            let at = now + n * 3_600_000;
            entries.push(entry(Kind::Reserved, &name, i128::from(n) * 7, at));
            match n % 4 {
                0 => entries.push(entry(Kind::Released, &name, 0, at + 10)),
                // Some are still open.
                1 => {}
                _ => entries.push(entry(Kind::Settled, &name, i128::from(n) * 3, at + 10)),
            }
        }
        let mut kept = Books::default();
        entries.iter().for_each(|entry| kept.apply(entry));
        let mut again = Books::default();
        // A part of the log was written twice.
        entries[..150].iter().for_each(|entry| again.apply(entry));
        entries[100..].iter().for_each(|entry| again.apply(entry));
        assert_eq!(kept.spent, again.spent);
        assert_eq!(kept.open, again.open);
        let sum: i128 = (0..200).filter(|n| n % 4 > 1).map(|n| n * 3).sum();
        let total = Amount::from_picos(sum).to_string();
        assert_eq!(kept.tenant("shop", now).total, total);
    }
}
