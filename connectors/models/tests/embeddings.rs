//! The built-in models against vectors that the upstream implementations made (`make_reference.py`), and what a user
//! relies on: Chinese finds English, a text's vector does not depend on its neighbours, token offsets fit the text.
//!
//! The models come through the store into the user's cache directory. Where they cannot be had the tests say `SKIPPED`,
//! except under CI, where that is a failure.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use va_models::{
    Embedder, Embedders, ModelLock, ModelStore, NoProgress, Role, default_model_dir, load_embedder,
    max_sim,
};

const E5: &str = "multilingual-e5-small";
const MINILM: &str = "all-minilm-l6-v2";

/// The model, or `None` (said on stderr) when it cannot be fetched and this is not CI.
fn model(name: &'static str) -> Option<Arc<dyn Embedder>> {
    static MODELS: OnceLock<Embedders> = OnceLock::new();
    let models =
        MODELS.get_or_init(|| Embedders::new(ModelStore::open(default_model_dir()).unwrap()));
    if let Err(error) = models.store().pull(name, &NoProgress) {
        assert!(
            std::env::var_os("CI").is_none(),
            "no model under CI: {error}"
        );
        eprintln!("SKIPPED: {error}");
        return None;
    }
    Some(models.get(name).unwrap())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    dot / norm(a) / norm(b)
}

fn check_reference(name: &'static str) {
    let Some(model) = model(name) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.json"));
    let data: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rows = data["rows"].as_array().unwrap();
    let mut worst = (1.0, "");
    for role in [Role::Passage, Role::Query] {
        let wanted = if role == Role::Query {
            "query"
        } else {
            "passage"
        };
        let rows: Vec<_> = rows.iter().filter(|r| r["role"] == wanted).collect();
        let texts: Vec<&str> = rows.iter().map(|r| r["text"].as_str().unwrap()).collect();
        // All in one batch: short and long texts, so that batching is tested too.
        let vectors = model.embed(&texts, role).unwrap();
        for (row, vector) in rows.iter().zip(&vectors) {
            let text = row["text"].as_str().unwrap();
            let expected: Vec<f32> = row["vector"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap() as f32)
                .collect();
            let norm = vector.iter().map(|v| v * v).sum::<f32>();
            assert!((norm - 1.0).abs() < 1e-4, "norm {norm} of {text:?}");
            let cosine = cosine(vector, &expected);
            println!("{cosine:.5} {wanted} {text:.40}");
            if cosine < worst.0 {
                worst = (cosine, text);
            }
        }
    }
    println!("{name}: worst {:.5}", worst.0);
    assert!(worst.0 > 0.995, "cosine {} for {:?}", worst.0, worst.1);
}

#[test]
fn e5_agrees_with_its_upstream_engine() {
    check_reference(E5);
}

#[test]
fn minilm_agrees_with_64_bit_arithmetic() {
    check_reference(MINILM);
}

/// Across languages only: this model puts any two texts of one language closer together than their subject deserves,
/// its upstream implementation too.
#[test]
fn chinese_and_english_find_each_other() {
    let Some(model) = model(E5) else { return };
    let english = [
        "Freeze rows or columns",
        "Insert footnote",
        "Change page margins",
        "Print several pages on one sheet",
        "Record a macro",
    ];
    let chinese = [
        "冻结行或列",
        "插入脚注",
        "更改页边距",
        "在一张纸上打印多页",
        "录制宏",
    ];
    for (queries, passages) in [(english, chinese), (chinese, english)] {
        let vectors = model.embed(&passages, Role::Passage).unwrap();
        for (expected, query) in queries.iter().enumerate() {
            let query_vector = &model.embed(&[query], Role::Query).unwrap()[0];
            let score = |i: &usize| cosine(query_vector, &vectors[*i]);
            let best = (0..passages.len())
                .max_by(|a, b| score(a).total_cmp(&score(b)))
                .unwrap();
            assert_eq!(best, expected, "{query} found {}", passages[best]);
        }
    }
}

#[test]
fn neighbours_in_a_batch_do_not_change_a_vector() {
    let Some(model) = model(E5) else { return };
    let long = "滚动时保持可见。".repeat(60);
    let texts = ["冻结行", long.as_str(), "a", "Freeze rows or columns"];
    let together = model.embed(&texts, Role::Passage).unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        let alone = &model.embed(&[text], Role::Passage).unwrap()[0];
        assert!(cosine(alone, vector) > 0.999_99, "{text:.20}");
    }
    assert!(model.embed(&[], Role::Passage).unwrap().is_empty());
}

#[test]
fn what_is_beyond_the_longest_input_does_not_count() {
    let Some(model) = model(E5) else { return };
    let text = "冻结行或列可以让表头始终可见。".repeat(200);
    assert!(model.tokenizer().count(&text) > model.max_tokens());
    // Far beyond and a little beyond: the same tokens are left.
    let little = model.tokenizer().offsets(&text)[model.max_tokens() + 20].1;
    let vectors = model
        .embed(&[&text, &text[..little]], Role::Passage)
        .unwrap();
    assert!(cosine(&vectors[0], &vectors[1]) > 0.99999);
}

#[test]
fn token_offsets_map_back_to_the_text() {
    for name in [E5, MINILM] {
        let Some(model) = model(name) else { return };
        for text in [
            "冻结行或列可以让表头在滚动时始终可见。第二句话！",
            "Freeze rows, or columns.  Twice  the spaces\n\nand lines",
            "混合 mixed 文本 with 数字 123 和 emoji 👍🏽 end",
            "ＡＢＣ 全角，ﬁ ligature, é",
            "",
            " ",
        ] {
            let tokenizer = model.tokenizer();
            let offsets = tokenizer.offsets(text);
            assert_eq!(offsets.len(), tokenizer.count(text), "{name} {text:?}");
            let mut covered = vec![false; text.len()];
            let mut last = 0;
            for &(start, end) in &offsets {
                assert!(start <= end && start >= last, "{name} {text:?} {offsets:?}");
                assert!(
                    text.is_char_boundary(start) && text.is_char_boundary(end),
                    "{name} {text:?} {offsets:?}"
                );
                covered[start..end].fill(true);
                last = start;
            }
            for (i, c) in text.char_indices() {
                assert!(
                    covered[i] || c.is_whitespace(),
                    "{name}: {c:?} of {text:?} is in no token: {offsets:?}"
                );
            }
        }
    }
}

/// Late interaction: a paraphrase is nearer than another subject in its own language, token by token.
#[test]
fn token_by_token_a_paraphrase_is_nearer_than_another_subject() {
    let Some(model) = model(E5) else { return };
    for (query, same, other) in [
        (
            "How long can I send a parcel back?",
            "Parcels may be returned within thirty days.",
            "Steam the fish for eight minutes over high heat.",
        ),
        (
            "包裹多久之内可以退回？",
            "收到快递后三十天内可以退货。",
            "清蒸鲈鱼要用大火蒸八分钟。",
        ),
    ] {
        let asked = &model.token_vectors(&[query], Role::Query).unwrap()[0];
        let passages = model.token_vectors(&[same, other], Role::Passage).unwrap();
        let scores: Vec<f64> = passages
            .iter()
            .map(|passage| max_sim(asked, &passage.pack()).unwrap())
            .collect();
        println!("{scores:?} {query}");
        assert!(scores[0] > scores[1], "{query}: {scores:?}");
    }
}

#[test]
fn each_token_that_says_something_has_a_vector_of_length_one() {
    for name in [E5, MINILM] {
        let Some(model) = model(name) else { return };
        let long = "冻结行或列，可以让表头始终可见。".repeat(12);
        // Several pieces of work, of different lengths, so that their order is tested too.
        let texts = [
            "Freeze rows, or columns!",
            long.as_str(),
            "冻结 mixed 123",
            "?!，。",
            "",
        ];
        for role in [Role::Passage, Role::Query] {
            let all = model.token_vectors(&texts, role).unwrap();
            // With it, since what stands before a text may move a border of tokens in it.
            let prefix = match (name, role) {
                (E5, Role::Query) => "query: ",
                (E5, Role::Passage) => "passage: ",
                _ => "",
            };
            for (text, vectors) in texts.iter().zip(&all) {
                let whole = format!("{prefix}{text}");
                let offsets = model.tokenizer().offsets(&whole);
                // Neither the special tokens nor the prefix.
                let telling = offsets.iter().filter(|(start, end)| {
                    *end > prefix.len() && whole[*start..*end].chars().any(char::is_alphanumeric)
                });
                assert_eq!(vectors.len(), telling.count(), "{name} {text:.20}");
                assert_eq!(vectors.rows().count(), vectors.len());
                for row in vectors.rows() {
                    let norm = row.iter().map(|v| v * v).sum::<f32>();
                    assert_eq!(row.len(), model.dims());
                    assert!((norm - 1.0).abs() < 1e-4, "{name} {text:.20}: {norm}");
                }
            }
        }
    }
}

#[test]
fn fingerprints_tell_models_apart_and_unloading_frees_only_idle_ones() {
    let (Some(e5), Some(minilm)) = (model(E5), model(MINILM)) else {
        return;
    };
    assert_ne!(e5.fingerprint(), minilm.fingerprint());
    let models = Embedders::new(ModelStore::open(default_model_dir()).unwrap());
    let held = models.get(MINILM).unwrap();
    assert_eq!(held.fingerprint(), minilm.fingerprint());
    assert_eq!(models.unload_idle(std::time::Duration::ZERO), 0);
    drop(held);
    assert_eq!(models.unload_idle(std::time::Duration::ZERO), 1);
    assert!(models.loaded().is_empty());
}

/// A directory of one's own: the MiniLM files copied somewhere else, run in 32 bit.
#[test]
fn a_directory_of_ones_own_is_a_model() {
    let Some(minilm) = model(MINILM) else { return };
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        std::fs::copy(
            default_model_dir().join(MINILM).join(file),
            dir.path().join(file),
        )
        .unwrap();
    }
    std::fs::write(dir.path().join("va-model.json"), r#"{"max_tokens": 128}"#).unwrap();
    let store = ModelStore::open(default_model_dir()).unwrap();
    let own = load_embedder(dir.path().to_str().unwrap(), &store).unwrap();
    assert_eq!((own.dims(), own.max_tokens()), (384, 128));
    assert_ne!(own.fingerprint(), minilm.fingerprint());
    let texts = ["Freeze rows or columns", "naïve café"];
    let (a, b) = (
        own.embed(&texts, Role::Passage).unwrap(),
        minilm.embed(&texts, Role::Passage).unwrap(),
    );
    for (a, b) in a.iter().zip(&b) {
        assert!(cosine(a, b) > 0.995);
    }
}

/// The same model as an int8 ONNX graph, through a lock file of one's own and a directory of one's own.
#[test]
fn an_onnx_graph_is_a_model() {
    const GRAPH: &str = "minilm-graph";
    let Some(minilm) = model(MINILM) else { return };
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/graph.lock.json");
    let lock = ModelLock::with_file(&lock).unwrap();
    assert!(lock.get(MINILM).is_some() && lock.get(GRAPH).is_some());
    let store = ModelStore::with_lock(default_model_dir(), lock);
    if let Err(error) = store.pull(GRAPH, &NoProgress) {
        assert!(
            std::env::var_os("CI").is_none(),
            "no model under CI: {error}"
        );
        eprintln!("SKIPPED: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (model, file) in [(GRAPH, "model.onnx"), (MINILM, "tokenizer.json")] {
        std::fs::copy(store.dir().join(model).join(file), dir.path().join(file)).unwrap();
    }
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    std::fs::write(
        dir.path().join("1_Pooling/config.json"),
        r#"{"pooling_mode_mean_tokens": true}"#,
    )
    .unwrap();
    let graph = load_embedder(dir.path().to_str().unwrap(), &store).unwrap();
    assert_eq!((graph.dims(), graph.max_tokens()), (384, 512));
    let long = "Keep rows visible while scrolling. ".repeat(20);
    let texts = [
        "Freeze rows or columns",
        long.as_str(),
        "naïve café",
        "insert a footnote",
    ];
    let (a, b) = (
        graph.embed(&texts, Role::Passage).unwrap(),
        minilm.embed(&texts, Role::Passage).unwrap(),
    );
    for (i, text) in texts.iter().enumerate() {
        // Two different 8-bit versions of one model.
        assert!(
            cosine(&a[i], &b[i]) > 0.97,
            "{} {text}",
            cosine(&a[i], &b[i])
        );
    }
}
