//! How many documents a second the catalog takes through their whole life, in a database file of its own.
//!
//! `cargo run -p va-catalog --example catalog_rate -- 20000`

use std::collections::BTreeMap;
use std::time::Instant;

use va_catalog::store::{CollectionConfig, NewVersion, News};
use va_catalog::{Catalog, CollectionName, CollectionRef, ContentHash, TenantId};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let documents: usize = std::env::args()
        .nth(1)
        .map_or(Ok(20_000), |count| count.parse())?;
    let folder = tempfile::tempdir()?;
    let catalog = Catalog::open(folder.path().join("catalog.db")).await?;
    let collection = CollectionRef {
        tenant: TenantId::default_tenant(),
        collection: CollectionName::new("rate")?,
    };
    catalog
        .create_collection(&collection, &CollectionConfig::default())
        .await?;
    let mut new = Vec::with_capacity(documents);
    for n in 0..documents {
        new.push(NewVersion {
            uri: format!("file:///srv/documents/handbook/{:02}/{n:06}.html", n % 100),
            name: format!("{n:06}.html"),
            content_type: Some("text/html".to_owned()),
            content_hash: ContentHash::new(format!("{n:064x}"))?,
            size: 12_345,
            metadata: BTreeMap::from([("lang".to_owned(), "zh".to_owned())]),
            readers: None,
        });
    }
    let report = |what: &str, start: Instant| {
        let rate = documents as f64 / start.elapsed().as_secs_f64();
        println!("{what:<34} {rate:>8.0} documents/s");
    };

    let start = Instant::now();
    let mut begun = Vec::with_capacity(documents);
    for part in new.chunks(1000) {
        begun.extend(catalog.begin_versions(&collection, part).await?);
    }
    report("begin_versions, 1000 a call", start);

    for (what, news) in [
        ("apply_news processing, 1000 a call", News::Processing),
        (
            "apply_news ready, 1000 a call",
            News::Ready {
                title: Some("标题".to_owned()),
                chunks: 8,
            },
        ),
    ] {
        let start = Instant::now();
        for part in begun.chunks(1000) {
            let news: Vec<_> = part
                .iter()
                .map(|begun| (begun.id, begun.version, news.clone()))
                .collect();
            for result in catalog.apply_news(&collection, &news).await? {
                result?;
            }
        }
        report(what, start);
    }

    let contents: Vec<_> = new
        .iter()
        .map(|new| (new.uri.clone(), new.content_hash.clone()))
        .collect();
    let start = Instant::now();
    let unchanged = catalog.unchanged(&collection, &contents).await?;
    report("unchanged", start);
    assert_eq!(unchanged.len(), documents);

    let start = Instant::now();
    for part in new.chunks(1000) {
        catalog.begin_versions(&collection, part).await?;
    }
    report("begin_versions, nothing new", start);

    let start = Instant::now();
    let singles = documents.min(500);
    for new in new.iter().take(singles) {
        let mut new = new.clone();
        new.uri.push_str("?v=2");
        catalog.begin_version(&collection, &new).await?;
    }
    let rate = singles as f64 / start.elapsed().as_secs_f64();
    println!(
        "{:<34} {rate:>8.0} documents/s",
        "begin_version, one a call"
    );
    Ok(())
}
