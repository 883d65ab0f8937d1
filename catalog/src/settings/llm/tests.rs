//! The section as it is written in `va.yaml`.

use super::*;
use crate::settings::Settings;

fn load(text: &str) -> Result<LlmSettings, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("va.yaml");
    std::fs::write(&path, text).expect("a file");
    Settings::load(Some(&path), std::iter::empty())
        .map(|settings| settings.llm)
        .map_err(|error| error.to_string())
}

const GOOD: &str = r#"
llm:
  default_model: chat
  providers:
    openai: {api_key_env: OPENAI_API_KEY}
    qwen: {kind: qwen, api_key: sk-1, headers: {x-team: voice}}
  models:
    chat:
      aliases: [gpt-4o-mini]
      deployments:
        - {provider: openai, model: gpt-4o-mini, weight: 3, rpm: 500, prices: [{input: 0.15, output: "0.60", cached: 0.075}]}
        - {provider: qwen, model: qwen-plus, prices: [{input: 0.4, output: 1.2}, {from: 2026-12-01, input: 1, output: 2}]}
      fallbacks: ["open-*"]
    "open-*":
      deployments: [{provider: openai, prices: [{input: 0, output: 0}]}]
    vectors: {use: embedding, deployments: [{provider: local, model: multilingual-e5-small}]}
  budgets: [{amount: 12.5, window: day}, {tenant: shop, key: key_1, amount: "100"}]
"#;

#[test]
fn prices_are_what_the_file_says_to_the_last_digit() {
    let llm = load(GOOD).expect("settings");
    let chat = &llm.models["chat"];
    let price = &chat.deployments[0].prices[0];
    assert_eq!(price.input, Price::from_micros(150_000));
    assert_eq!(price.output, Price::from_micros(600_000));
    assert_eq!(price.cached, Some(Price::from_micros(75_000)));
    // 0.15 for a million tokens: 7 of them are 1.05 millionths.
    assert_eq!(price.input.of_tokens(7), 1_050_000);
    assert_eq!(llm.budgets[0].amount.picos(), 12_500_000_000_000);
    assert_eq!(llm.budgets[0].tenant, "default");
    assert_eq!(
        chat.deployments[1].prices[1]
            .from
            .expect("a day")
            .begin_ms(),
        1_796_083_200_000
    );
    // What is written down can be read again, which is how the environment is laid over the file.
    let again: LlmSettings =
        serde_json::from_value(serde_json::to_value(&llm).expect("JSON")).expect("settings");
    assert_eq!(again, llm);
    assert!(!format!("{llm:?}").contains("sk-1"));
    for (text, picos) in [
        ("0.000001", 1_000_000),
        (".5", 500_000_000_000),
        ("3", 3_000_000_000_000),
    ] {
        assert_eq!(text.parse::<Amount>().expect(text).picos(), picos, "{text}");
    }
    assert_eq!(Amount::from_picos(-1_050_000).to_string(), "-0.00000105");
    for wrong in [
        "",
        ".",
        "1e3",
        "-1",
        "0.0000001",
        "one",
        "1.2.3",
        "99999999999999999999999999999999999999999",
    ] {
        assert!(wrong.parse::<Price>().is_err(), "{wrong}");
    }
}

#[test]
fn a_name_finds_its_model() {
    let llm = load(GOOD).expect("settings");
    let found = |name: &str| llm.find(name).map(|(name, _)| name);
    assert_eq!(found("chat"), Some("chat"));
    assert_eq!(found("gpt-4o-mini"), Some("chat"));
    assert_eq!(found("open-anything"), Some("open-*"));
    assert_eq!(found("other"), None);
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let error = load(
        r#"
llm:
  default_model: nothing
  providers:
    local: {}
    a: {kind: azure}
    b: {base_url: "ftp://x", api_key: k, api_key_env: K, max_tokens_field: length}
  models:
    one: {aliases: [two], fallbacks: [three]}
    two: {deployments: [{provider: c}, {provider: local}]}
    "t*o": {deployments: [{provider: a, prices: [{input: 1}, {output: 1}]}]}
  budgets: [{tenant: "a b", amount: 1}]
  routing: {failures_percent_max: 101}
  cache: {semantic: {enabled: true, model: "", entries_max: 1000000}}
"#,
    )
    .expect_err("wrong");
    for part in [
        "`llm.default_model`: there is no model `nothing`",
        "`llm.providers.local`: `local` is this process",
        "`llm.providers.a` has no `base_url`",
        "`llm.providers.b`.base_url",
        "`llm.providers.b` has both `api_key` and `api_key_env`",
        "`length`: use `max_tokens`",
        "`llm.models.one` has no `deployments`",
        "`llm.models.one.fallbacks`: there is no model `three`",
        "the name `two` belongs to `one` already",
        "`llm.models.two.deployments[0]`: there is no provider `c`",
        "`llm.models.two.deployments[0]` has no `prices`",
        "`llm.models.t*o`: a `*` may only be the last",
        "two prices begin on the same day",
        "`llm.budgets[0].tenant`",
        "`llm.routing.failures_percent_max` is 101",
        "`llm.cache.semantic.entries_max` is 1000000",
        "`llm.cache.semantic.model` is empty",
    ] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    let error = load("llm:\n  budgets: [{amount: 1e3x}]\n").expect_err("no amount");
    assert!(error.contains("is not an amount"), "{error}");
}

#[test]
fn the_usual_variables_alone_make_providers() {
    let with = |variables: &[(&str, &str)]| {
        LlmSettings::default().or_environment(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    };
    assert_eq!(with(&[]), LlmSettings::default());
    assert_eq!(with(&[("OPENAI_API_KEY", " ")]), LlmSettings::default());
    let both = with(&[("OPENAI_API_KEY", "k"), ("ANTHROPIC_API_KEY", "k")]);
    assert_eq!(both.problems(), Vec::<String>::new());
    assert_eq!(
        both.find("claude-x").map(|(name, _)| name),
        Some("claude-*")
    );
    assert_eq!(both.find("gpt-x").map(|(name, _)| name), Some("*"));
    let own = with(&[("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")]);
    assert_eq!(own.providers["openai"].api_key_env, None);
    // What the file says is not mixed with it.
    let file = load(GOOD).expect("settings");
    assert_eq!(file.clone().or_environment(|_| Some("k".to_owned())), file);
}

#[test]
fn caches_are_off_until_they_are_switched_on() {
    let none = load("llm: {}\n").expect("settings").cache;
    assert!(!none.exact.enabled && !none.semantic.enabled);
    let llm = load(
        "llm:\n  cache: {exact: {enabled: true, life_seconds: 60}, semantic: {enabled: true, similarity: 0.9}}\n",
    )
    .expect("settings");
    assert_eq!(llm.cache.exact.life_seconds, 60);
    assert!((llm.cache.semantic.similarity.as_f32() - 0.9).abs() < 1e-6);
    let again: LlmSettings =
        serde_json::from_value(serde_json::to_value(&llm).expect("JSON")).expect("settings");
    assert_eq!(again, llm);
    let error = load("llm:\n  cache: {semantic: {similarity: 1.5}}\n").expect_err("too much");
    assert!(error.contains("1.5 is not within 0 and 1"), "{error}");
}
