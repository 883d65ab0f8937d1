//! Filters as SQL over the `tags` column, with who looks among the conditions.
//!
//! Values come from users, so a value only ever appears inside a quoted literal. LanceDB's dialect knows no backslash
//! escapes: a doubled quote is the only way out of a literal, and [`quoted`] doubles every quote.

use va_catalog::Filter;
use va_catalog::readers::RESTRICTED_TAG;

use crate::VectorError;

/// More than this many values is not a filter but a join; the limit keeps the planner's recursion small.
const VALUES_MAX: usize = 1000;
const KEYS_MAX: usize = 64;

/// The condition as SQL; `None` when everything matches.
pub fn filter_sql(filter: &Filter) -> Result<Option<String>, VectorError> {
    if filter.is_empty() {
        return Ok(None);
    }
    let mut conditions = Vec::new();
    let mut values = 0;
    for group in filter.groups() {
        values += group.len();
        let tags: Vec<String> = group.iter().map(|tag| quoted(tag)).collect();
        conditions.push(match tags.as_slice() {
            // No value is allowed, so none matches.
            [] => "false".to_owned(),
            [tag] => format!("array_has(tags, {tag})"),
            tags => format!("array_has_any(tags, [{}])", tags.join(", ")),
        });
    }
    if values > VALUES_MAX || conditions.len() > KEYS_MAX {
        return Err(VectorError::Invalid(format!(
            "the filter has {} keys with {values} values; use at most {KEYS_MAX} keys with {VALUES_MAX} values in all",
            conditions.len()
        )));
    }
    // What the platform knows of the caller is no part of what the caller may ask too much of.
    if let Some(readers) = filter.reader_tags() {
        conditions.push(visible(&readers));
    }
    Ok(Some(conditions.join(" AND ")))
}

/// The condition that a chunk is not restricted, or is so to somebody whose tags these are.
fn visible(readers: &[String]) -> String {
    let restricted = format!("array_has(tags, {})", quoted(RESTRICTED_TAG));
    if readers.is_empty() {
        return format!("NOT {restricted}");
    }
    let readers: Vec<String> = readers.iter().map(|tag| quoted(tag)).collect();
    format!(
        "(NOT {restricted} OR array_has_any(tags, [{}]))",
        readers.join(", ")
    )
}

/// A string as an SQL literal.
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use va_catalog::Viewer;

    fn check(filter: &str, expected: Option<&str>) {
        let filter: Filter = serde_json::from_str(filter).expect("a filter");
        assert_eq!(filter_sql(&filter).expect("sql").as_deref(), expected);
    }

    #[test]
    fn filters_become_sql() {
        check("{}", None);
        check(
            r#"{"lang":"zh","format":["html","pdf"]}"#,
            Some(
                "array_has_any(tags, ['format=html', 'format=pdf']) AND array_has(tags, 'lang=zh')",
            ),
        );
        check(r#"{"lang":[]}"#, Some("false"));
        check(
            r#"{"a":"x') OR true --"}"#,
            Some("array_has(tags, 'a=x'') OR true --')"),
        );
    }

    #[test]
    fn who_looks_becomes_sql() {
        let seen_by = |filter: &str, readers: &[&str]| {
            let filter: Filter = serde_json::from_str(filter).expect("a filter");
            let readers = readers.iter().map(|r| r.parse().expect("a reader"));
            let filter = filter.seen_by(Viewer::Only(readers.collect()));
            filter_sql(&filter).expect("sql").expect("a condition")
        };
        assert_eq!(
            seen_by("{}", &[]),
            "NOT array_has(tags, 'va.restricted')",
            "whoever is nobody sees what everybody does"
        );
        assert_eq!(
            seen_by(r#"{"lang":"zh"}"#, &["role:viewer", "user:o'neill"]),
            "array_has(tags, 'lang=zh') AND (NOT array_has(tags, 'va.restricted') \
             OR array_has_any(tags, ['va.reader=user:o''neill', 'va.reader=role:viewer']))"
        );
    }

    #[test]
    fn huge_filters_are_refused() {
        let values: Vec<String> = (0..1001).map(|i| i.to_string()).collect();
        let json = serde_json::json!({ "page": values });
        let filter: Filter = serde_json::from_value(json).expect("a filter");
        let error = filter_sql(&filter).expect_err("too many values");
        assert!(
            error.to_string().contains("1 keys with 1001 values"),
            "{error}"
        );
    }
}
