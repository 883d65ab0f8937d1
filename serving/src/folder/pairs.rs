//! Telling a moved file from one that came and one that went. Pure.

use std::collections::HashMap;

use va_catalog::{ContentHash, DocumentId};

/// A document whose file is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    pub id: DocumentId,
    pub uri: String,
    pub hash: ContentHash,
}

/// For each document that is gone, the new URI with the same content, if there is one; each URI is given once, both in
/// their order.
pub fn pair<'a>(
    gone: &[Gone],
    new: impl IntoIterator<Item = (&'a ContentHash, &'a str)>,
) -> Vec<Option<&'a str>> {
    let mut waiting: HashMap<&ContentHash, Vec<&str>> = HashMap::new();
    for (hash, uri) in new {
        waiting.entry(hash).or_default().push(uri);
    }
    for uris in waiting.values_mut() {
        uris.reverse();
    }
    gone.iter()
        .map(|gone| waiting.get_mut(&gone.hash)?.pop())
        .collect()
}

#[cfg(test)]
mod tests {
    use va_catalog::{CollectionName, CollectionRef, TenantId};

    use super::*;

    fn hash(digit: char) -> ContentHash {
        ContentHash::new(String::from(digit).repeat(64)).unwrap()
    }

    fn gone(uri: &str, digit: char) -> Gone {
        let collection = CollectionRef {
            tenant: TenantId::default_tenant(),
            collection: CollectionName::new("c").unwrap(),
        };
        Gone {
            id: DocumentId::of(&collection, uri),
            uri: uri.into(),
            hash: hash(digit),
        }
    }

    #[test]
    fn each_new_file_is_one_move_at_most() {
        let (a, b) = (hash('a'), hash('b'));
        let gone = [
            gone("1", 'a'),
            gone("2", 'a'),
            gone("3", 'a'),
            gone("4", 'c'),
        ];
        let new = [(&a, "x"), (&b, "y"), (&a, "z")];
        assert_eq!(pair(&gone, new), [Some("x"), Some("z"), None, None]);
        assert_eq!(pair(&gone, []), [None; 4]);
    }
}
