//! Markers of sources as writers write them: `[3]`, `来源[3]`, `[Source 2, 1]`, `【2】`.
//!
//! Pure functions over pieces of text. Leaves to the parent where a marker ends and whether its source exists.

/// Longest marker, in bytes: `[来源 12, 13, 14]` and the like.
pub const MARKER_BYTES_MAX: usize = 40;

/// What writers put before or into a marker.
pub const LABELS: &[&str] = &["来源", "Source ", "Source", "source ", "source"];

/// How many bytes at the end of a text may be the beginning of a label.
pub fn label_begun(text: &str) -> usize {
    LABELS
        .iter()
        .flat_map(|label| {
            label
                .char_indices()
                .skip(1)
                .map(move |(i, _)| &label[..i])
                .chain([*label])
        })
        .filter(|begun| text.ends_with(begun))
        .map(str::len)
        .max()
        .unwrap_or(0)
}

/// The numbers inside a marker; `None` when it is no marker.
pub fn numbers(inside: &str) -> Option<Vec<u32>> {
    let inside = inside.trim();
    let inside = LABELS
        .iter()
        .find_map(|label| inside.strip_prefix(label))
        .unwrap_or(inside);
    let numbers: Option<Vec<u32>> = inside
        .split([',', '，', '、', ';', ' '])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            if part.len() <= 3 {
                part.parse().ok()
            } else {
                None
            }
        })
        .collect();
    numbers.filter(|numbers| !numbers.is_empty())
}
