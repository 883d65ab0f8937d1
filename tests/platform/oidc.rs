//! Logging in with an account of another provider: a real one (`oidc-provider`), and curl in the part of the browser.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::identity::{call, make_user, server, text};
use crate::on_servers::servers;
use crate::server::{Server, good, skip};

/// What the provider sends browsers back to. Nothing listens there: the test takes the reply from the address.
const CALLBACK: &str = "http://127.0.0.1:1/api/v1/auth/oidc/callback";

fn start(data: &std::path::Path, issuer: &str, create_users: &str) -> Server {
    server(
        data,
        &[
            ("OIDC__ISSUER", issuer),
            ("OIDC__CLIENT_ID", "va & co"),
            ("OIDC__CLIENT_SECRET", "a secret: with % and +"),
            ("OIDC__REDIRECT_URL", CALLBACK),
            ("OIDC__CREATE_USERS", create_users),
        ],
    )
}

fn curl(args: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-s", "--noproxy", "*"])
        .args(args)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A browser with its cookies.
struct Browser(tempfile::TempDir);

impl Browser {
    fn new() -> Self {
        Self(tempdir().unwrap())
    }

    fn jar(&self) -> String {
        self.0.path().join("jar").to_str().unwrap().to_owned()
    }

    /// Goes to the provider as `name`; the query with which it is sent back.
    fn visit(&self, server: &Server, name: &str) -> String {
        let url = format!("{}/api/v1/auth/oidc/login?login_hint={name}", server.base);
        let jar = self.jar();
        let end = curl(&[
            "-L",
            "-c",
            &jar,
            "-b",
            &jar,
            "-o",
            "/dev/null",
            "-w",
            "%{url_effective}",
            &url,
        ]);
        let query = end.strip_prefix(&format!("{CALLBACK}?"));
        query
            .unwrap_or_else(|| panic!("{name} was not sent back but to {end}"))
            .to_owned()
    }

    fn come_back(&self, server: &Server, query: &str) -> (u16, Value) {
        let url = format!("{}/api/v1/auth/oidc/callback?{query}", server.base);
        let reply = curl(&["-b", &self.jar(), "-w", "\n%{http_code}", &url]);
        let (body, status) = reply.rsplit_once('\n').unwrap();
        (
            status.parse().unwrap(),
            serde_json::from_str(body).unwrap_or_default(),
        )
    }

    fn log_in(server: &Server, name: &str) -> (u16, Value) {
        let browser = Self::new();
        let query = browser.visit(server, name);
        browser.come_back(server, &query)
    }
}

#[test]
fn an_account_of_another_provider_is_a_user_here() {
    let provider = match servers::Server::start(&format!("oidc.sh {CALLBACK}")) {
        Ok(provider) => provider,
        Err(reason) => return skip(&reason).unwrap_or(()),
    };
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl, which is the browser, is not there").unwrap_or(());
    }
    let dir = tempdir().unwrap();
    let strict = start(dir.path(), provider.url(), "false");
    let code = |(status, reply): (u16, Value)| {
        (
            status,
            reply["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    // Nobody becomes a user by having an account somewhere.
    assert_eq!(
        code(Browser::log_in(&strict, "ann")),
        (403, "not_registered".to_owned())
    );
    let ann = make_user(&strict, &strict.key, "Ann@example.com", &["editor"]);
    make_user(&strict, &strict.key, "unverified@example.com", &["owner"]);
    let (status, reply) = Browser::log_in(&strict, "ann");
    assert_eq!(
        (status, &reply["user"]["id"]),
        (200, &json!(ann)),
        "{reply}"
    );
    let token = text(&reply["access_token"]);
    let me = good(call(&strict, "GET", "/api/v1/users/me", Some(&token)));
    assert_eq!(me["roles"], json!(["editor"]));
    let refreshed = json!({"refresh_token": reply["refresh_token"]});
    good(call(&strict, "POST", "/api/v1/auth/refresh", None).json(&refreshed));
    // Again, by the link now; and not with an address that nobody has verified.
    assert_eq!(Browser::log_in(&strict, "ann").0, 200);
    assert_eq!(
        code(Browser::log_in(&strict, "unverified")),
        (403, "not_registered".to_owned())
    );

    // The reply counts for the browser that began, once, unchanged and from this provider.
    let browser = Browser::new();
    let query = browser.visit(&strict, "ann");
    let stolen = Browser::new();
    assert_eq!(
        code(stolen.come_back(&strict, &query)),
        (400, "oidc_state".to_owned())
    );
    stolen.visit(&strict, "ann");
    assert_eq!(
        code(stolen.come_back(&strict, &query)),
        (400, "oidc_state".to_owned())
    );
    let elsewhere = query.replace("iss=http", "iss=https");
    assert_eq!(
        code(browser.come_back(&strict, &elsewhere)),
        (400, "oidc_state".to_owned())
    );
    let refused = query.replace("code=", "error=access_denied&x=");
    assert_eq!(
        code(browser.come_back(&strict, &refused)),
        (403, "oidc_refused".to_owned())
    );
    assert_eq!(browser.come_back(&strict, &query).0, 200);
    assert_eq!(
        code(browser.come_back(&strict, &query)),
        (502, "oidc_provider".to_owned()),
        "a code works once"
    );

    let disabled = json!({"state": "DISABLED"});
    good(
        call(
            &strict,
            "PATCH",
            &format!("/api/v1/users/{ann}"),
            Some(&strict.key),
        )
        .json(&disabled),
    );
    assert_eq!(
        code(Browser::log_in(&strict, "ann")),
        (403, "not_registered".to_owned())
    );
    strict.kill();

    // Where the settings say so, somebody unknown becomes a user with the roles of the settings.
    let open = start(dir.path(), provider.url(), "true");
    let (status, reply) = Browser::log_in(&open, "ben");
    assert_eq!(
        (status, &reply["user"]["roles"]),
        (200, &json!(["viewer"])),
        "{reply}"
    );
    assert_eq!(reply["user"]["name"], json!("ben of the provider"));
    assert_eq!(
        Browser::log_in(&open, "ben").1["user"]["id"],
        reply["user"]["id"]
    );
    assert_eq!(
        code(Browser::log_in(&open, "unverified2")),
        (403, "not_registered".to_owned())
    );
    // Such a user has no password to guess.
    let guess = json!({"email": "ben@example.com", "password": ""});
    let guessed = call(&open, "POST", "/api/v1/auth/login", None)
        .json(&guess)
        .send()
        .unwrap();
    assert_eq!(guessed.status().as_u16(), 401);
    // The provider is gone: that is said, and other logins work.
    drop(provider);
    open.kill();
    let alone = start(dir.path(), "http://127.0.0.1:1", "true");
    let reply = curl(&[
        "-w",
        "%{http_code}",
        &format!("{}/api/v1/auth/oidc/login", alone.base),
    ]);
    assert!(
        reply.contains("oidc_provider") && reply.ends_with("502"),
        "{reply}"
    );
    assert!(!reply.contains("a secret"), "{reply}");
}
