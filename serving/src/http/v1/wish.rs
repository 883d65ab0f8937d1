//! What a request wants of the caches of replies: the header `Cache-Control`, or the field `cache` of the body.

use axum::http::{HeaderMap, header};
use serde_json::Value;
use va_llm::ChatRequest;

use super::read::{flag, take, wrong};
use crate::gateway::CacheWish;
use crate::http::Problem;

/// Takes the wish out of the request, so that no provider sees it. The strictest of what is said holds.
pub(super) fn cache_wish(
    headers: &HeaderMap,
    request: &mut ChatRequest,
) -> Result<CacheWish, Problem> {
    let (mut no_cache, mut no_store) = (false, false);
    for value in headers.get_all(header::CACHE_CONTROL) {
        for word in value.to_str().unwrap_or_default().split(',') {
            match word.trim().to_ascii_lowercase().as_str() {
                "no-cache" => no_cache = true,
                "no-store" => no_store = true,
                // Ages and the like: replies have the life that the settings give them.
                _ => {}
            }
        }
    }
    match take(&mut request.extra, "cache") {
        None => {}
        Some(Value::Object(mut wishes)) => {
            no_cache |= flag(&mut wishes, "no_cache")?.unwrap_or_default();
            no_store |= flag(&mut wishes, "no_store")?.unwrap_or_default();
            if let Some(other) = wishes.keys().next() {
                return Err(wrong(
                    &format!("cache.{other}"),
                    "is not known: there are `no_cache` and `no_store`",
                ));
            }
        }
        Some(_) => return Err(wrong("cache", "must be an object, as {\"no_cache\": true}")),
    }
    Ok(match (no_store, no_cache) {
        (true, _) => CacheWish::Bypass,
        (false, true) => CacheWish::Refresh,
        (false, false) => CacheWish::Use,
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn header_and_body_say_the_same() {
        for (header, body, expected) in [
            ("", json!(null), CacheWish::Use),
            ("max-age=0", json!({}), CacheWish::Use),
            ("No-Cache", json!(null), CacheWish::Refresh),
            ("", json!({"no_cache": true}), CacheWish::Refresh),
            (
                "no-cache, no-store",
                json!({"no_store": false}),
                CacheWish::Bypass,
            ),
            ("no-cache", json!({"no_store": true}), CacheWish::Bypass),
        ] {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_static(header);
            headers.insert(header::CACHE_CONTROL, value);
            let mut request = ChatRequest::default();
            request.extra.insert("cache".into(), body);
            let wish = cache_wish(&headers, &mut request).ok();
            assert_eq!(wish, Some(expected), "{header}");
            assert!(request.extra.is_empty());
        }
        for wrong in [json!(true), json!({"ttl": 5}), json!({"no_cache": "yes"})] {
            let mut request = ChatRequest::default();
            request.extra.insert("cache".into(), wrong.clone());
            assert!(
                cache_wish(&HeaderMap::new(), &mut request).is_err(),
                "{wrong}"
            );
        }
    }
}
