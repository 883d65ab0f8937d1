//! The name under which a reply is kept: a hash of all of its request that decides what the reply is.

use serde_json::Value;
use sha2::{Digest, Sha256};
use va_catalog::TenantId;
use va_connectors::cache::CacheKey;
use va_llm::{ChatRequest, Message, Part, ResponseFormat, Role};

use super::index::Meaning;

/// What says who asks or how it is paid, and changes no reply.
const FOR_THE_PROVIDER: &[&str] = &[
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
];

/// A question that others may mean too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Of all of the request but the question.
    pub context: String,
    pub text: String,
}

/// The name of the reply to exactly this request.
pub(super) fn exact(tenant: &TenantId, model: &str, request: &ChatRequest) -> Option<CacheKey> {
    let hash = hash(&normalised(model, request)?);
    Some(CacheKey::new("reply", tenant, &[&hash]))
}

/// The name of the reply to a question.
pub(super) fn similar(tenant: &TenantId, meaning: &Meaning) -> CacheKey {
    let hash = hash(&Value::from(meaning.text()));
    CacheKey::new("reply-similar", tenant, &[meaning.context(), &hash])
}

/// The question of a request that is text only, without functions and without a form for the reply.
pub(super) fn question(model: &str, request: &ChatRequest) -> Option<Question> {
    let is_text = |message: &Message| {
        matches!(message.role, Role::System | Role::User | Role::Assistant)
            && message.tool_calls.is_empty()
            && message
                .content
                .iter()
                .all(|part| matches!(part, Part::Text { .. }))
    };
    let free = matches!(request.response_format, None | Some(ResponseFormat::Text));
    if !free || !request.tools.is_empty() || !request.messages.iter().all(is_text) {
        return None;
    }
    let (last, before) = request.messages.split_last()?;
    let text = last.plain().trim().to_owned();
    if last.role != Role::User || last.name.is_some() || text.is_empty() {
        return None;
    }
    let context = ChatRequest {
        messages: before.to_vec(),
        ..request.clone()
    };
    Some(Question {
        context: hash(&normalised(model, &context)?),
        text,
    })
}

/// The request without what changes no reply, the model under the one name for all its aliases. `None` only if it could
/// not be written as JSON.
fn normalised(model: &str, request: &ChatRequest) -> Option<Value> {
    let mut value = serde_json::to_value(request).ok()?;
    let fields = value.as_object_mut()?;
    fields.insert("model".to_owned(), model.into());
    // One that comes in one piece says the same.
    fields.remove("stream");
    fields.remove("user");
    if let Some(extra) = fields.get_mut("extra").and_then(Value::as_object_mut) {
        extra.retain(|name, _| !FOR_THE_PROVIDER.contains(&name.as_str()));
    }
    Some(value)
}

/// SHA-256 of the value, whatever order its objects are in.
fn hash(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (name, value) in fields {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write(item, out);
                out.push(',');
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use va_llm::Tool;

    use super::*;

    fn request(question: &str) -> ChatRequest {
        ChatRequest {
            model: "gpt-4o-mini".into(),
            messages: vec![
                Message::text(Role::System, "Be short."),
                Message::text(Role::User, question),
            ],
            temperature: Some(0.5),
            ..ChatRequest::default()
        }
    }

    fn key(request: &ChatRequest) -> String {
        let tenant = TenantId::default_tenant();
        let key = exact(&tenant, "chat", request).expect("a key");
        key.as_str().to_owned()
    }

    #[test]
    fn the_same_request_has_the_same_key_and_another_one_another() {
        let plain = key(&request("hi"));
        assert!(plain.starts_with("reply:default:"), "{plain}");
        let changed = |change: &dyn Fn(&mut ChatRequest)| {
            let mut request = request("hi");
            change(&mut request);
            key(&request)
        };
        // These say the same.
        assert_eq!(changed(&|request| request.stream = true), plain);
        assert_eq!(changed(&|request| request.model = "chat".into()), plain);
        assert_eq!(changed(&|request| request.user = Some("ann".into())), plain);
        let metadata = |request: &mut ChatRequest| {
            let ann = json!({"user_id": "ann"});
            request.extra.insert("metadata".into(), ann);
        };
        assert_eq!(changed(&metadata), plain);
        // These do not.
        let others = [
            key(&request("hi ")),
            changed(&|request| request.temperature = None),
            changed(&|request| request.max_tokens = Some(5)),
            changed(&|request| request.seed = Some(1)),
            changed(&|request| {
                request.extra.insert("top_k".into(), json!(5));
            }),
            changed(&|request| request.messages.swap(0, 1)),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(*other, plain, "{at}");
        }
        let distinct: std::collections::BTreeSet<_> = others.iter().collect();
        assert_eq!(distinct.len(), others.len());
        let other = TenantId::new("shop").expect("a tenant");
        let theirs = exact(&other, "chat", &request("hi")).expect("a key");
        assert_ne!(theirs.as_str(), plain);
    }

    #[test]
    fn the_order_of_fields_says_nothing() {
        assert_eq!(
            hash(&json!({"a": 1, "b": [{"c": 2, "d": "x"}]})),
            hash(&json!({"b": [{"d": "x", "c": 2}], "a": 1}))
        );
        assert_ne!(hash(&json!([1, 2])), hash(&json!([2, 1])));
        assert_ne!(hash(&json!({"a": "1"})), hash(&json!({"a": 1})));
    }

    #[test]
    fn only_a_question_in_words_may_mean_what_another_does() {
        let of = |request: &ChatRequest| question("chat", request);
        let one = of(&request("How do I freeze rows?")).expect("a question");
        let other = of(&request(" Freezing rows ")).expect("a question");
        assert_eq!(one.context, other.context);
        assert_eq!(other.text, "Freezing rows");
        let mut elsewhere = request("How do I freeze rows?");
        elsewhere.messages[0] = Message::text(Role::System, "Be long.");
        assert_ne!(of(&elsewhere).expect("a question").context, one.context);

        let without = |change: &dyn Fn(&mut ChatRequest)| {
            let mut request = request("hi");
            change(&mut request);
            of(&request)
        };
        let tool = Tool {
            name: "f".into(),
            description: None,
            parameters: json!({}),
            strict: None,
            cache_control: None,
        };
        let picture = Part::Image {
            url: "https://x/y.png".into(),
            detail: None,
            cache_control: None,
        };
        assert_eq!(without(&|r| r.tools.push(tool.clone())), None);
        assert_eq!(
            without(&|r| r.response_format = Some(ResponseFormat::Json)),
            None
        );
        assert_eq!(
            without(&|r| r.messages[1].content.push(picture.clone())),
            None
        );
        assert_eq!(without(&|r| r.messages.swap(0, 1)), None);
        assert_eq!(
            without(&|r| r.messages[1] = Message::text(Role::User, " ")),
            None
        );
    }
}
