//! A client of a Confluent-compatible schema registry: subjects, versions, ids, compatibility, config.
//!
//! What a schema id means never changes, so schemas are kept by id and asked for once. A request is repeated a few times,
//! with growing pauses, when the registry does not answer or says that it is busy; after that the error says which URL was
//! asked. Passwords and tokens are named by an environment variable: pipelines and topics are stored and shown.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use va_catalog::TopicName;

use crate::format::FormatError;

/// How to reach a schema registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryOptions {
    /// Where it is, e.g. `http://registry:8081`.
    pub url: String,
    /// User name, for basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Name of the environment variable that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// Name of the environment variable that holds a bearer token, instead of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// Which subject the schema of a topic is registered under.
    #[serde(default)]
    pub subject: SubjectNames,
    /// Written: a schema that the subject does not have yet is registered. Else it must be there.
    #[serde(default = "yes")]
    pub register: bool,
}

fn yes() -> bool {
    true
}

/// How subjects are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubjectNames {
    /// `<topic>-value`: one kind of message a topic.
    #[default]
    Topic,
    /// The record's full name: the same wherever it is used.
    Record,
    /// `<topic>-<record>`: many kinds in a topic, each by itself.
    TopicRecord,
}

impl SubjectNames {
    /// The subject of a record in a topic.
    pub fn subject(self, topic: &TopicName, record: &str) -> String {
        match self {
            Self::Topic => format!("{topic}-value"),
            Self::Record => record.to_owned(),
            Self::TopicRecord => format!("{topic}-{record}"),
        }
    }
}

/// A schema as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredSchema {
    pub schema: String,
    /// `AVRO` (also when absent), `PROTOBUF` or `JSON`.
    #[serde(rename = "schemaType", default = "avro")]
    pub kind: String,
    #[serde(default)]
    pub references: Vec<Reference>,
}

fn avro() -> String {
    "AVRO".to_owned()
}

/// A schema that another one imports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// As the import names it.
    pub name: String,
    pub subject: String,
    pub version: u32,
}

/// A version of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SubjectVersion {
    pub id: u32,
    pub version: u32,
    #[serde(flatten)]
    pub schema: RegisteredSchema,
}

/// Whether a schema may follow the ones that a subject has, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compatibility {
    pub is_compatible: bool,
    pub reasons: Vec<String>,
}

/// Pauses before a request is repeated.
const PAUSES_MS: [u64; 3] = [100, 400, 1_600];
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A client. Cheap to clone; clones share what they have asked for.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    http: reqwest::Client,
    username: Option<String>,
    secret: Option<String>,
    is_token: bool,
    by_id: Mutex<HashMap<u32, Arc<RegisteredSchema>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("url", &self.shared.url)
            .finish_non_exhaustive()
    }
}

impl RegistryOptions {
    /// Every problem that can be seen without asking the registry.
    pub fn check(&self) -> Result<(), FormatError> {
        let is_http = self.url.starts_with("http://") || self.url.starts_with("https://");
        if !is_http {
            return Err(FormatError::Invalid(format!(
                "`registry.url` is `{}`; use one that begins with http:// or https://",
                self.url
            )));
        }
        if self.token_env.is_some() && (self.username.is_some() || self.password_env.is_some()) {
            return Err(FormatError::Invalid(
                "`registry` has both a user and a token; use one of them".to_owned(),
            ));
        }
        Ok(())
    }
}

impl Registry {
    /// A client; asks nothing yet.
    pub fn new(options: &RegistryOptions) -> Result<Self, FormatError> {
        options.check()?;
        va_connectors::tls::install();
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|error| FormatError::invalid("make a client of the registry", error))?;
        let name = options.token_env.as_ref().or(options.password_env.as_ref());
        let secret = name
            .map(|name| {
                std::env::var(name).map_err(|_| {
                    FormatError::Invalid(format!(
                        "the environment variable `{name}`, which `registry` names, is not set; set it where the server runs"
                    ))
                })
            })
            .transpose()?;
        Ok(Self {
            shared: Arc::new(Shared {
                url: options.url.trim_end_matches('/').to_owned(),
                http,
                username: options.username.clone(),
                secret,
                is_token: options.token_env.is_some(),
                by_id: Mutex::default(),
            }),
        })
    }

    /// The schema of an id; `None` when there is none. Asked for once.
    pub async fn schema(&self, id: u32) -> Result<Option<Arc<RegisteredSchema>>, FormatError> {
        let known = || {
            let by_id = self
                .shared
                .by_id
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            by_id.get(&id).cloned()
        };
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        let path = format!("/schemas/ids/{id}");
        let Some(found) = self.ask(Method::GET, &path, None).await?.found()? else {
            return Ok(None);
        };
        let schema: Arc<RegisteredSchema> = Arc::new(self.read(&path, found)?);
        let mut by_id = self
            .shared
            .by_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        by_id.insert(id, schema.clone());
        Ok(Some(schema))
    }

    /// A version of a subject; the newest when `version` is `None`. `None` when there is none.
    pub async fn version(
        &self,
        subject: &str,
        version: Option<u32>,
    ) -> Result<Option<SubjectVersion>, FormatError> {
        let version = version.map_or_else(|| "latest".to_owned(), |version| version.to_string());
        let path = format!("/subjects/{}/versions/{version}", encoded(subject));
        match self.ask(Method::GET, &path, None).await?.found()? {
            Some(found) => self.read(&path, found).map(Some),
            None => Ok(None),
        }
    }

    /// All subjects.
    pub async fn subjects(&self) -> Result<Vec<String>, FormatError> {
        let found = self.ask(Method::GET, "/subjects", None).await?.done()?;
        self.read("/subjects", found)
    }

    /// The id of a schema that the subject has; `None` when it does not have it.
    pub async fn lookup(
        &self,
        subject: &str,
        schema: &RegisteredSchema,
    ) -> Result<Option<u32>, FormatError> {
        let path = format!("/subjects/{}", encoded(subject));
        let found = self
            .ask(Method::POST, &path, Some(body(schema)))
            .await?
            .found()?;
        Ok(found
            .and_then(|found| found["id"].as_u64())
            .map(|id| id as u32))
    }

    /// Registers a schema, or finds it registered already: its id. Refused when the subject's rule does not allow it.
    pub async fn register(
        &self,
        subject: &str,
        schema: &RegisteredSchema,
    ) -> Result<u32, FormatError> {
        let path = format!("/subjects/{}/versions", encoded(subject));
        let answer = self.ask(Method::POST, &path, Some(body(schema))).await?;
        if answer.status == StatusCode::CONFLICT {
            return Err(FormatError::Invalid(format!(
                "the registry does not let this schema follow those of subject `{subject}`: {}; keep the columns that \
                 others read and add nullable ones, or loosen the subject's compatibility",
                answer.message()
            )));
        }
        let found = answer.done()?;
        let id = found["id"]
            .as_u64()
            .ok_or_else(|| self.strange(&path, &found))?;
        Ok(id as u32)
    }

    /// The id that a writer puts before its messages: registers the schema if it may, else it has to be there.
    pub async fn id_of(
        &self,
        subject: &str,
        schema: &RegisteredSchema,
        may_register: bool,
    ) -> Result<u32, FormatError> {
        if may_register {
            return self.register(subject, schema).await;
        }
        let found = self.lookup(subject, schema).await?;
        found.ok_or_else(|| {
            FormatError::Invalid(format!(
                "subject `{subject}` does not have the schema of these rows; register it there, or set `registry.register: true`"
            ))
        })
    }

    /// Whether a schema may follow the newest of a subject. A subject that is not there takes any.
    pub async fn compatibility(
        &self,
        subject: &str,
        schema: &RegisteredSchema,
    ) -> Result<Compatibility, FormatError> {
        let path = format!(
            "/compatibility/subjects/{}/versions/latest?verbose=true",
            encoded(subject)
        );
        let found = self
            .ask(Method::POST, &path, Some(body(schema)))
            .await?
            .found()?;
        let Some(found) = found else {
            return Ok(Compatibility {
                is_compatible: true,
                reasons: Vec::new(),
            });
        };
        let texts = found["messages"].as_array().into_iter().flatten();
        let reasons = texts
            .chain([&found["reason"]])
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect();
        let is_compatible = found["is_compatible"]
            .as_bool()
            .ok_or_else(|| self.strange(&path, &found))?;
        Ok(Compatibility {
            is_compatible,
            reasons,
        })
    }

    /// The compatibility rule of a subject, or of all without one of their own.
    pub async fn rule(&self, subject: Option<&str>) -> Result<String, FormatError> {
        let path = rule_path(subject);
        let mut found = self.ask(Method::GET, &path, None).await?.found()?;
        if found.is_none() && subject.is_some() {
            found = self.ask(Method::GET, "/config", None).await?.found()?;
        }
        let found = found.unwrap_or(Value::Null);
        ["compatibilityLevel", "compatibility"]
            .iter()
            .find_map(|name| found[name].as_str())
            .map(str::to_owned)
            .ok_or_else(|| self.strange(&path, &found))
    }

    /// Sets the rule: `BACKWARD`, `FORWARD`, `FULL`, `NONE` or a `_TRANSITIVE` one.
    pub async fn set_rule(&self, subject: Option<&str>, rule: &str) -> Result<(), FormatError> {
        let body = json!({"compatibility": rule});
        self.ask(Method::PUT, &rule_path(subject), Some(body))
            .await?
            .done()
            .map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, FormatError> {
        let url = format!("{}{path}", self.shared.url);
        let mut pauses = PAUSES_MS.iter();
        loop {
            let mut request = self
                .shared
                .http
                .request(method.clone(), &url)
                .header("accept", format!("{MEDIA_TYPE}, application/json"));
            request = match (&self.shared.secret, &self.shared.username) {
                (Some(token), _) if self.shared.is_token => request.bearer_auth(token),
                (password, Some(username)) => request.basic_auth(username, password.as_ref()),
                _ => request,
            };
            if let Some(body) = &body {
                request = request
                    .header("content-type", MEDIA_TYPE)
                    .body(body.to_string());
            }
            let failed = match request.send().await {
                Ok(reply) => {
                    let status = reply.status();
                    let is_busy =
                        status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                    let text = reply.text().await.unwrap_or_default();
                    let answer = Answer {
                        url: url.clone(),
                        status,
                        text,
                    };
                    if !is_busy {
                        return Ok(answer);
                    }
                    format!("it answered {status}: {}", answer.message())
                }
                Err(error) => error.without_url().to_string(),
            };
            let Some(pause) = pauses.next() else {
                return Err(FormatError::Unavailable(format!(
                    "the schema registry at {url} does not answer: {failed}; look whether it runs and whether `registry.url` is right"
                )));
            };
            tracing::debug!(url, failed, pause_ms = pause, "the registry is asked again");
            tokio::time::sleep(Duration::from_millis(*pause)).await;
        }
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        found: Value,
    ) -> Result<T, FormatError> {
        serde_json::from_value(found.clone()).map_err(|_| self.strange(path, &found))
    }

    fn strange(&self, path: &str, found: &Value) -> FormatError {
        let text: String = found.to_string().chars().take(200).collect();
        FormatError::Invalid(format!(
            "{}{path} did not answer as a schema registry does: {text}; look whether `registry.url` is right",
            self.shared.url
        ))
    }
}

/// What the registry said.
struct Answer {
    url: String,
    status: StatusCode,
    text: String,
}

impl Answer {
    fn message(&self) -> String {
        let value: Value = serde_json::from_str(&self.text).unwrap_or(Value::Null);
        let text = value["message"].as_str().unwrap_or(&self.text);
        text.chars().take(500).collect()
    }

    fn done(self) -> Result<Value, FormatError> {
        if self.status.is_success() {
            return serde_json::from_str(&self.text).map_err(|_| {
                FormatError::Invalid(format!(
                    "{} did not answer with JSON; look whether `registry.url` is right",
                    self.url
                ))
            });
        }
        let what = match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "it does not let this user; set `username` and `password_env`, or `token_env`"
            }
            StatusCode::UNPROCESSABLE_ENTITY => "it does not take this schema",
            _ => "it refused",
        };
        Err(FormatError::Invalid(format!(
            "the schema registry at {}: {what} ({}): {}",
            self.url,
            self.status,
            self.message()
        )))
    }

    /// `None` when there is no such thing.
    fn found(self) -> Result<Option<Value>, FormatError> {
        match self.status {
            StatusCode::NOT_FOUND => Ok(None),
            _ => self.done().map(Some),
        }
    }
}

fn rule_path(subject: Option<&str>) -> String {
    subject.map_or_else(
        || "/config".to_owned(),
        |subject| format!("/config/{}", encoded(subject)),
    )
}

fn body(schema: &RegisteredSchema) -> Value {
    let mut body = json!({"schema": schema.schema});
    // Old registries know only Avro, and do not know the word.
    if schema.kind != "AVRO" {
        body["schemaType"] = schema.kind.as_str().into();
    }
    if !schema.references.is_empty() {
        body["references"] = json!(schema.references);
    }
    body
}

/// A name as one segment of a path.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            text.push(byte as char);
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_named_as_others_name_them() {
        let topic = TopicName::new("orders").unwrap();
        for (names, expected) in [
            (SubjectNames::Topic, "orders-value"),
            (SubjectNames::Record, "shop.Order"),
            (SubjectNames::TopicRecord, "orders-shop.Order"),
        ] {
            assert_eq!(names.subject(&topic, "shop.Order"), expected);
        }
        assert_eq!(encoded("订单-value/1"), "%E8%AE%A2%E5%8D%95-value%2F1");
    }

    #[tokio::test]
    async fn a_registry_that_is_not_there_is_named() {
        // A port of this process that nobody listens on any more.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let options =
            serde_json::from_value(json!({"url": format!("http://127.0.0.1:{port}/")})).unwrap();
        let error = Registry::new(&options)
            .unwrap()
            .schema(7)
            .await
            .unwrap_err();
        assert!(matches!(error, FormatError::Unavailable(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("http://127.0.0.1:{port}/schemas/ids/7")),
            "{text}"
        );
        for (wrong, part) in [
            (json!({"url": "registry:8081"}), "http://"),
            (
                json!({"url": "http://r", "token_env": "VA_NO_SUCH_TOKEN"}),
                "VA_NO_SUCH_TOKEN",
            ),
            (
                json!({"url": "http://r", "token_env": "A", "username": "u"}),
                "one of them",
            ),
        ] {
            let options: RegistryOptions = serde_json::from_value(wrong).unwrap();
            let error = Registry::new(&options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
