//! How many requests a tenant may make in a minute (`limits.requests_per_minute`).
//!
//! Windows are whole minutes of the clock. Processes that share a cache count together, otherwise, and while it is gone,
//! each for itself. Requests without a credential are of no tenant; those that cost something are bounded by address
//! (`identity/throttle.rs`). What a model may cost is the gateway's business.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use va_catalog::TenantId;
use va_catalog::settings::LimitSettings;
use va_catalog::store::Principal;
use va_connectors::cache::CacheKey;

use super::{App, Problem};
use crate::platform::now_ms;

const WINDOW_MS: i64 = 60_000;
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Lets a request pass while its tenant has made fewer than it may.
pub async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let tenant = request
        .extensions()
        .get::<Principal>()
        .map(|principal| principal.tenant.clone());
    let Some(tenant) = tenant else {
        return next.run(request).await;
    };
    let Some(limit) = limit_of(&app.platform.settings.limits, &tenant) else {
        return next.run(request).await;
    };
    let now = now_ms();
    let window = now.div_euclid(WINDOW_MS);
    let key = CacheKey::new("limit.requests", &tenant, &[&window.to_string()]);
    // A process whose clock is behind still finds it.
    let life = Duration::from_millis(2 * WINDOW_MS.unsigned_abs());
    let count = app.platform.counters.count(&key, life).await;
    let standing = Standing::of(limit, count, now);
    let mut response = if standing.admitted {
        next.run(request).await
    } else {
        metrics::counter!("va_rate_limited_total").increment(1);
        let detail = format!(
            "the tenant has made the {limit} requests that it may make in a minute; try again in {} seconds",
            standing.reset_seconds
        );
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            .after(Duration::from_secs(standing.reset_seconds))
            .into_response()
    };
    let headers = response.headers_mut();
    headers.insert(LIMIT, HeaderValue::from(limit));
    headers.insert(REMAINING, HeaderValue::from(standing.remaining));
    headers.insert(RESET, HeaderValue::from(standing.reset_seconds));
    response
}

/// What the tenant may, if that is bounded.
fn limit_of(settings: &LimitSettings, tenant: &TenantId) -> Option<u32> {
    settings
        .requests_per_minute_of
        .get(tenant.as_str())
        .copied()
        .or(settings.requests_per_minute)
        .map(std::num::NonZeroU32::get)
}

/// How a tenant stands in its window.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    admitted: bool,
    remaining: i64,
    /// Until the next window, rounded up, so that waiting so long is worth it.
    reset_seconds: u64,
}

impl Standing {
    /// `count`: requests of the window, this one included.
    fn of(limit: u32, count: i64, now_ms: i64) -> Self {
        let left_ms = WINDOW_MS - now_ms.rem_euclid(WINDOW_MS);
        Self {
            admitted: count <= i64::from(limit),
            remaining: i64::from(limit).saturating_sub(count).max(0),
            reset_seconds: left_ms.unsigned_abs().div_ceil(1_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_tenant_has_its_own_limit_or_that_of_all() {
        let tenant = |name: &str| TenantId::new(name).unwrap();
        let mut settings = LimitSettings::default();
        assert_eq!(limit_of(&settings, &tenant("a")), None);
        settings
            .requests_per_minute_of
            .insert("a".to_owned(), NonZeroU32::new(7).unwrap());
        assert_eq!(limit_of(&settings, &tenant("a")), Some(7));
        assert_eq!(limit_of(&settings, &tenant("b")), None);
        settings.requests_per_minute = NonZeroU32::new(3);
        assert_eq!(limit_of(&settings, &tenant("a")), Some(7));
        assert_eq!(limit_of(&settings, &tenant("b")), Some(3));
    }

    #[test]
    fn the_last_request_that_is_permitted_passes() {
        let standing = |admitted, remaining, reset_seconds| Standing {
            admitted,
            remaining,
            reset_seconds,
        };
        assert_eq!(Standing::of(2, 1, 60_000), standing(true, 1, 60));
        assert_eq!(Standing::of(2, 2, 60_001), standing(true, 0, 60));
        assert_eq!(Standing::of(2, 3, 119_999), standing(false, 0, 1));
        assert_eq!(Standing::of(2, i64::MAX, 90_000), standing(false, 0, 30));
    }
}
