//! The terms of texts, as data: `tests/data/analysis.txt`.

use std::collections::BTreeMap;
use std::path::Path;

use va_fulltext::Analysis;

/// Terms by position: `a [b ab] c`.
fn show(text: &str) -> String {
    let mut positions: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for term in Analysis::default().terms(text) {
        assert!(
            text.get(term.start..term.end)
                .is_some_and(|s| !s.is_empty()),
            "`{}` of `{text}` has no place",
            term.text
        );
        positions.entry(term.position).or_default().push(term.text);
    }
    let positions: Vec<_> = positions
        .into_values()
        .map(|terms| match terms.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(" ")),
        })
        .collect();
    positions.join(" ")
}

#[test]
fn texts_have_the_expected_terms() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/analysis.txt");
    let expected = std::fs::read_to_string(&path).expect("the cases");
    let mut actual = String::new();
    for line in expected.lines().filter(|line| !line.starts_with("    ")) {
        actual += line;
        actual += "\n";
        if !line.is_empty() && !line.starts_with('#') {
            actual += format!("    {}", show(line)).trim_end();
            actual += "\n";
        }
    }
    let expected: Vec<_> = expected
        .lines()
        .map(str::trim_end)
        .filter(|l| !l.is_empty())
        .collect();
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, actual).expect("the cases can be written");
        return;
    }
    let actual: Vec<_> = actual.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(actual, expected, "REWRITE=1 rewrites the file");
}

#[test]
fn equal_texts_have_equal_terms() {
    for (a, b) in [
        ("ＡＢＣ１２３", "abc123"),
        ("資料庫", "资料库"),
        ("凍結", "冻结"),
        ("Café", "cafe\u{301}"),
        ("e‑mail", "e-mail"),
        ("user’s", "user's"),
    ] {
        assert_eq!(show(a), show(b));
    }
}
