//! Highlights and snippets: exact places in the original text.

use va_fulltext::{highlights, snippet};

/// The text with its highlights in brackets.
fn marked(text: &str, query: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut marked = String::new();
    let mut at = 0;
    for (start, end) in highlights(text, query) {
        assert!(at <= start && start < end && end <= chars.len());
        marked.extend(&chars[at..start]);
        marked.push('[');
        marked.extend(&chars[start..end]);
        marked.push(']');
        at = end;
    }
    marked.extend(&chars[at..]);
    marked
}

#[test]
fn matches_are_marked_in_the_original() {
    for (text, query, expected) in [
        (
            "Excel表格的freeze功能",
            "FREEZING 功能",
            "Excel表格的[freeze功能]",
        ),
        ("😀要凍結行，请…", "冻结行", "😀要[凍結行]，请…"),
        ("ＡＢＣ１２３ and abc", "abc123", "[ＡＢＣ１２３] and [abc]"),
        (
            "Freeze the rows of the table",
            "how to freeze the row",
            "[Freeze] the [rows] of the table",
        ),
        ("Café cafe\u{301}s", "cafe", "[Café] [cafe\u{301}s]"),
        (
            "the IndexWriter's index_writer",
            "writer",
            "the Index[Writer]'s index_[writer]",
        ),
        (
            "数据库管理系统保存数据",
            "数据",
            "[数据]库管理系统保存[数据]",
        ),
        ("怎样冻结表格的行？", "怎样冻结表格", "怎样[冻结表格]的行？"),
        ("进行中：冻结 行", "冻结行", "进行中：[冻结] [行]"),
        ("进行中", "行", "进[行]中"),
        ("½ cup", "2", "[½] cup"),
        ("to be or not to be", "to be", "[to] [be] or not [to] [be]"),
        ("nothing here", "zebra", "nothing here"),
        ("nothing here", "", "nothing here"),
        ("", "zebra", ""),
        ("a\0b zebra\u{ad}s", "zebra", "a\0b [zebra\u{ad}s]"),
    ] {
        assert_eq!(marked(text, query), expected, "{query}");
    }
}

#[test]
fn snippets_are_whole_sentences_around_the_matches() {
    let show = |text: &str, query: &str, chars_max| {
        let (start, end) = snippet(text, &highlights(text, query), chars_max);
        assert!(start <= end && end - start <= chars_max);
        text.chars()
            .skip(start)
            .take(end - start)
            .collect::<String>()
    };
    let zh = "打开文件。选择一个单元格。要冻结行，请选择视图。“好。”完成后保存文件。";
    assert_eq!(show(zh, "冻结行", 16), "要冻结行，请选择视图。“好。”");
    assert_eq!(show(zh, "冻结", 12), "要冻结行，请选择视图。");
    assert_eq!(show(zh, "文件", 6), "打开文件。");
    assert_eq!(show(zh, "zebra", 13), "打开文件。选择一个单元格。");
    assert_eq!(show(zh, "冻结", 1000), zh);
    let en = "Open the file. Zebras are animals. A zebra eats grass with a lion! End of it.";
    assert_eq!(
        show(en, "zebra lion", 40),
        "A zebra eats grass with a lion!"
    );
    // One sentence that is too long is cut between words, around the match.
    let long = format!(
        "{}the zebra sleeps {}",
        "word ".repeat(50),
        "more ".repeat(50)
    );
    let cut = show(&long, "zebra", 60);
    assert!(
        cut.contains("the zebra sleeps more") && cut.starts_with("word "),
        "{cut}"
    );
    let han = format!("{}冻结{}", "的".repeat(500), "了".repeat(500));
    assert!(show(&han, "冻结", 50).contains("冻结"));
    assert_eq!(show("   ", "x", 2), "");
    assert_eq!(show("abc", "abc", 0), "");
}
