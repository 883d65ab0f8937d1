//! Names of tables: every collection has exactly one, made of what every file system and LanceDB allow.
//!
//! `<tenant>__<collection>`, in which lower-case ASCII letters, digits and `-` stand for themselves and any other
//! character is `_<hexadecimal code point>_`; an empty escape (`__`) is the separator, so that reading from the left
//! is unambiguous. Capitals are escaped because some file systems do not tell them from small letters.
//!
//! LanceDB allows 128 bytes. A longer name becomes `h-<128-bit hash>`, and the table's schema metadata says whose it is.

use std::collections::HashMap;

use va_catalog::{CollectionName, CollectionRef, DocumentId, TenantId};

const NAME_BYTES_MAX: usize = 128;
const TENANT_KEY: &str = "va.tenant";
const COLLECTION_KEY: &str = "va.collection";

/// A table's name, and the metadata that must be stored with it.
pub(crate) struct TableName {
    pub name: String,
    pub metadata: HashMap<String, String>,
}

pub(crate) fn table_name(collection: &CollectionRef) -> TableName {
    let tenant = collection.tenant.as_str();
    let name = format!(
        "{}__{}",
        escape(tenant),
        escape(collection.collection.as_str())
    );
    if name.len() <= NAME_BYTES_MAX {
        return TableName {
            name,
            metadata: HashMap::new(),
        };
    }
    TableName {
        // The id of a document is a hash of tenant, collection and text: exactly what is needed.
        name: format!("h-{}", DocumentId::of(collection, "vector table")),
        metadata: HashMap::from([
            (TENANT_KEY.to_owned(), tenant.to_owned()),
            (
                COLLECTION_KEY.to_owned(),
                collection.collection.as_str().to_owned(),
            ),
        ]),
    }
}

/// The collection of a table name; `None` for a hashed name (read the metadata) or one that is not ours.
pub(crate) fn collection_of(name: &str) -> Option<CollectionRef> {
    let mut parts = vec![String::new()];
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '_' {
            parts.last_mut()?.push(c);
            continue;
        }
        let (code, after) = rest.split_once('_')?;
        rest = after;
        if code.is_empty() {
            parts.push(String::new());
        } else {
            let c = char::from_u32(u32::from_str_radix(code, 16).ok()?)?;
            parts.last_mut()?.push(c);
        }
    }
    let [tenant, collection] = parts.try_into().ok()?;
    named(tenant, collection)
}

/// The collection that a table's metadata names.
pub(crate) fn collection_in(metadata: &HashMap<String, String>) -> Option<CollectionRef> {
    named(
        metadata.get(TENANT_KEY)?.clone(),
        metadata.get(COLLECTION_KEY)?.clone(),
    )
}

fn named(tenant: String, collection: String) -> Option<CollectionRef> {
    Some(CollectionRef {
        tenant: TenantId::new(tenant).ok()?,
        collection: CollectionName::new(collection).ok()?,
    })
}

fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' {
            escaped.push(c);
        } else {
            escaped.push_str(&format!("_{:x}_", u32::from(c)));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(tenant: &str, name: &str) -> CollectionRef {
        named(tenant.into(), name.into()).expect("valid names")
    }

    #[test]
    fn names_are_safe_distinct_and_reversible() {
        let names = [
            "help",
            "帮助-2026",
            "a",
            "a_b",
            "_5e2e_",
            "A",
            "a.lance",
            "b-",
            "𠀀",
            "ß",
        ];
        let mut seen = std::collections::HashSet::new();
        for tenant in names {
            for name in names {
                let collection = collection(tenant, name);
                let table = table_name(&collection).name;
                assert!(
                    table
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c)),
                    "{table}"
                );
                assert_eq!(collection_of(&table), Some(collection), "{table}");
                assert!(seen.insert(table));
            }
        }
        let pinned = table_name(&collection("default", "帮助")).name;
        assert_eq!(pinned, "default___5e2e__52a9_");
    }

    #[test]
    fn long_names_are_hashed_and_kept_in_metadata() {
        let long = collection("default", &"冻".repeat(128));
        let table = table_name(&long);
        assert_eq!(table.name.len(), 34);
        assert_eq!(collection_of(&table.name), None);
        assert_eq!(collection_in(&table.metadata), Some(long));
        let other = collection("default", &"结".repeat(128));
        assert_ne!(table.name, table_name(&other).name);
    }

    #[test]
    fn foreign_names_are_not_ours() {
        for name in [
            "",
            "x",
            "a__b__c",
            "a_b",
            "a__",
            "__a",
            "a__b_zz_",
            "a___110000_",
        ] {
            assert_eq!(collection_of(name), None, "{name}");
        }
    }
}
