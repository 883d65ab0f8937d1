//! Objects in S3 and what speaks its protocol.
//!
//! Reads where the bucket is and who asks from the options and, where they say nothing, from the usual `AWS_*` variables;
//! with neither keys nor an endpoint of one's own the client asks the machine it runs on, as is usual in AWS. Every request
//! has a time limit and is tried again a bounded number of times. Secrets have a type that does not print.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, Error as StoreError, ObjectStore, RetryConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use va_catalog::settings::Secret;

use super::ObjectError;

/// How long one request may take: a part of a few MiB over a slow line.
const REQUEST_TIMEOUT: &str = "60 seconds";
const CONNECT_TIMEOUT: &str = "5 seconds";
/// After this nothing is tried again, however often it was.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// How to reach an S3 store. What is left out comes from the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct S3Options {
    /// URL of a store other than AWS, like `https://minio.example:9000`; else `AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// Else `AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Else `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// Else `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Option<Secret>,
    /// Of temporary keys; else `AWS_SESSION_TOKEN`.
    pub session_token: Option<Secret>,
    /// Permits an endpoint without TLS; else `AWS_ALLOW_HTTP`.
    pub allow_http: bool,
    /// Asks for the bucket as `BUCKET.ENDPOINT` instead of `ENDPOINT/BUCKET`, which most stores other than AWS want.
    pub virtual_hosted_style: bool,
    /// How often a request that failed for a passing reason is tried again, waiting longer each time.
    pub retries_max: usize,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            allow_http: false,
            virtual_hosted_style: false,
            retries_max: 6,
        }
    }
}

/// The store behind `s3://BUCKET/PREFIX`. It has been asked once, so that a wrong bucket or key is told at the start.
pub(super) async fn open(
    url: &str,
    options: &S3Options,
) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    // What is no text is no setting of ours; `vars` would panic on it.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let invalid = |problem: String| ObjectError::Storage(format!("open `{url}`: {problem}"));
    let place = url.strip_prefix("s3://").unwrap_or_default();
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() || bucket.contains(['@', ':', '?']) {
        // Not shown: what does not belong there may be a key.
        return Err(ObjectError::Storage(
            "the URL of the object storage is not s3://BUCKET/PREFIX; keys and endpoint are options of their own"
                .to_owned(),
        ));
    }
    let prefix = Path::parse(prefix).map_err(|error| invalid(error.to_string()))?;
    let store = builder(bucket, options, environment)
        .map_err(&invalid)?
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let store = PrefixStore::new(store, prefix);
    // Any request would do; this one is answered with what the bucket is, not with what an object is.
    match store.list(Some(&Path::from("00"))).next().await {
        Some(Err(error)) => Err(invalid(explained(&error, bucket))),
        _ => Ok(Arc::new(store)),
    }
}

/// Whether there is a bucket, but not this object in it.
pub(super) fn is_missing_object(error: &StoreError) -> bool {
    matches!(error, StoreError::NotFound { source, .. } if !source.to_string().contains("NoSuchBucket"))
}

fn builder(
    bucket: &str,
    options: &S3Options,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<AmazonS3Builder, String> {
    use AmazonS3ConfigKey::{
        AccessKeyId, Client, Endpoint, Region, S3Endpoint, SecretAccessKey, Token,
        VirtualHostedStyleRequest,
    };
    use ClientConfigKey::{AllowHttp, ConnectTimeout, Timeout};
    let mut builder = AmazonS3Builder::new()
        .with_config(Client(ConnectTimeout), CONNECT_TIMEOUT)
        .with_config(Client(Timeout), REQUEST_TIMEOUT);
    for (name, value) in environment.filter(|(name, _)| name.starts_with("AWS_")) {
        // The others are for other programs.
        let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else {
            continue;
        };
        // Of two keys, no part of the one goes with the other.
        let of_key = matches!(key, AccessKeyId | SecretAccessKey | Token);
        if !(of_key && options.access_key_id.is_some()) {
            builder = builder.with_config(key, value);
        }
    }
    let given = [
        // The one that counts most, whatever the environment says.
        (S3Endpoint, options.endpoint.as_deref()),
        (Region, options.region.as_deref()),
        (AccessKeyId, options.access_key_id.as_deref()),
        (
            SecretAccessKey,
            options.secret_access_key.as_ref().map(Secret::expose),
        ),
        (Token, options.session_token.as_ref().map(Secret::expose)),
    ];
    for (key, value) in given {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    if options.virtual_hosted_style {
        builder = builder.with_config(VirtualHostedStyleRequest, "true");
    }
    let known = |key| {
        builder
            .get_config_value(&key)
            .filter(|value| !value.is_empty())
    };
    let endpoint = known(S3Endpoint).or_else(|| known(Endpoint));
    let access_key = known(AccessKeyId);
    let secret_key = known(SecretAccessKey);
    if access_key.is_some() != secret_key.is_some() {
        return Err("of the access key, `access_key_id` and `secret_access_key` belong together: one is missing".to_owned());
    }
    if let Some(endpoint) = &endpoint {
        if access_key.is_none() {
            return Err(format!(
                "there are no keys for `{endpoint}`: set `access_key_id` and `secret_access_key`, or `AWS_ACCESS_KEY_ID` and \
                 `AWS_SECRET_ACCESS_KEY`"
            ));
        }
        let allowed = options.allow_http
            || known(Client(AllowHttp)).is_some_and(|value| {
                ["true", "1", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
            });
        if endpoint.starts_with("http://") && !allowed {
            return Err(format!(
                "the endpoint `{endpoint}` has no TLS: use https, or permit it with `allow_http`"
            ));
        }
    }
    Ok(builder
        .with_bucket_name(bucket)
        .with_allow_http(
            endpoint
                .as_ref()
                .is_some_and(|endpoint| endpoint.starts_with("http://")),
        )
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: options.retries_max,
            retry_timeout: RETRY_TIMEOUT,
        }))
}

/// What went wrong, and what to do about it. A failed list has no kind of its own in the client, only the answer's text.
fn explained(error: &StoreError, bucket: &str) -> String {
    let text = error.to_string();
    if unreachable(error) {
        format!("the store cannot be reached: check the endpoint and the network ({text})")
    } else if text.contains("NoSuchBucket") {
        format!("the bucket `{bucket}` does not exist: make it, or correct the URL ({text})")
    } else if text.contains("403 Forbidden") || text.contains("401 Unauthorized") {
        format!(
            "access to the bucket `{bucket}` is denied: check the keys, and that they may list, read, write and delete ({text})"
        )
    } else {
        text
    }
}

/// Whether no connection came about.
fn unreachable(error: &StoreError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return error.kind() == HttpErrorKind::Connect;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(options: &S3Options, env: &[(&str, &str)]) -> Result<AmazonS3Builder, String> {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        builder("bucket", options, env)
    }

    /// Endpoint, region, key and session token of what is built.
    fn shown(builder: &AmazonS3Builder) -> [String; 4] {
        use AmazonS3ConfigKey::{AccessKeyId, Endpoint, Region, S3Endpoint, Token};
        let known = |key| builder.get_config_value(&key);
        [
            known(S3Endpoint).or_else(|| known(Endpoint)),
            known(Region),
            known(AccessKeyId),
            known(Token),
        ]
        .map(Option::unwrap_or_default)
    }

    #[test]
    fn options_over_environment_over_defaults() {
        let env = [
            ("AWS_ACCESS_KEY_ID", "env-key"),
            ("AWS_SECRET_ACCESS_KEY", "env-secret"),
            ("AWS_SESSION_TOKEN", "env-token"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "https://env.example"),
            ("AWS_PAGER", "less"),
            ("HOME", "elsewhere"),
        ];
        let built_by_env = built(&S3Options::default(), &env).unwrap();
        assert_eq!(
            shown(&built_by_env),
            ["https://env.example", "eu-west-1", "env-key", "env-token"]
        );
        let options = S3Options {
            endpoint: Some("https://option.example".into()),
            region: Some("cn-north-1".into()),
            access_key_id: Some("option-key".into()),
            secret_access_key: Some(Secret::new("option-secret")),
            ..S3Options::default()
        };
        let special = [
            env.as_slice(),
            &[("AWS_ENDPOINT_URL_S3", "https://env3.example")],
        ]
        .concat();
        let built_by_both = built(&options, &special).unwrap();
        assert_eq!(
            shown(&built_by_both),
            ["https://option.example", "cn-north-1", "option-key", ""]
        );
        // On AWS itself the machine may have the keys.
        let nothing = built(&S3Options::default(), &[]).unwrap();
        assert_eq!(shown(&nothing), ["", "", "", ""]);
    }

    #[test]
    fn an_endpoint_without_tls_is_permitted_explicitly() {
        let env = [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000"),
        ];
        let error = built(&S3Options::default(), &env).unwrap_err();
        assert!(
            error.contains("`http://127.0.0.1:9000` has no TLS"),
            "{error}"
        );
        let allowed = [env.as_slice(), &[("AWS_ALLOW_HTTP", "TRUE")]].concat();
        assert!(built(&S3Options::default(), &allowed).is_ok());
    }
}
