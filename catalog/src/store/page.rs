//! Lists in pages: a limit and an opaque cursor that says where the page before ended.
//!
//! Pages are cut by key (`key > last key`), not by offset, so rows that come or go between two calls neither repeat
//! nor hide others.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::error::CatalogError;

/// The most rows that one page holds; a larger limit is an error.
pub const PAGE_LIMIT_MAX: u32 = 1000;

/// Which page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// 1 to [`PAGE_LIMIT_MAX`].
    pub limit: u32,
    /// [`Listing::next`] of the page before; `None` for the first page.
    pub cursor: Option<String>,
}

impl Default for Page {
    /// The first 100.
    fn default() -> Self {
        Self {
            limit: 100,
            cursor: None,
        }
    }
}

impl Page {
    /// The first `limit` rows.
    pub fn first(limit: u32) -> Self {
        Self {
            limit,
            cursor: None,
        }
    }

    /// `limit` checked, and one more row than asked for, by which the last page is known.
    pub(crate) fn rows(&self) -> Result<i64, CatalogError> {
        if (1..=PAGE_LIMIT_MAX).contains(&self.limit) {
            Ok(i64::from(self.limit) + 1)
        } else {
            Err(CatalogError::Invalid(format!(
                "limit `{}` is out of range: use 1 to {PAGE_LIMIT_MAX}",
                self.limit
            )))
        }
    }

    /// The key after which the page begins; the empty string, which sorts before all keys, for the first page.
    pub(crate) fn after(&self) -> Result<String, CatalogError> {
        let Some(cursor) = &self.cursor else {
            return Ok(String::new());
        };
        URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| {
                CatalogError::Invalid(format!(
                    "`{cursor}` is not a cursor: use `next` of the page before, unchanged"
                ))
            })
    }

    /// Cuts the extra row off and makes the cursor.
    pub(crate) fn listing<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> &str) -> Listing<T> {
        let limit = self.limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items
            .last()
            .filter(|_| more)
            .map(|last| URL_SAFE_NO_PAD.encode(key(last)));
        Listing { items, next }
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<T> {
    pub items: Vec<T>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<String>,
}
