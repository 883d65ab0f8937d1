//! `va user`, `va tenant`, `va key`: who may come in, as the HTTP resources have it.

use std::io::{BufRead, IsTerminal};
use std::str::FromStr;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::client::{Client, Failure, Outcome, encode};
use super::table::{cell, print, time};

/// Users of the tenant.
#[derive(Subcommand)]
pub enum UserCommand {
    /// All users.
    List {
        #[arg(long)]
        json: bool,
    },
    /// One user.
    Show { id: String },
    /// Make a user; the password is read from standard input, so that it is in no history.
    #[command(after_help = "Example: va user create ann@example.com --role editor < password.txt")]
    Create {
        email: String,
        /// owner, admin, editor, viewer, or a role of your own; may be repeated.
        #[arg(long = "role", default_value = "viewer")]
        roles: Vec<String>,
        #[arg(long)]
        name: Option<String>,
        /// The user gets no password, so cannot log in with one.
        #[arg(long)]
        no_password: bool,
    },
    /// Make an invite, with which one person registers.
    #[command(after_help = "Example: va user invite --role viewer")]
    Invite {
        #[arg(long = "role", default_value = "viewer")]
        roles: Vec<String>,
    },
    /// Give a user these roles instead of those it has.
    #[command(after_help = "Example: va user roles USER editor")]
    Roles {
        id: String,
        #[arg(required = true)]
        roles: Vec<String>,
    },
    /// End all sessions of a user and let it log in no more.
    Disable { id: String },
    /// Let a user log in again, also after too many wrong passwords.
    Enable { id: String },
    /// Remove a user; its sessions end and its keys are revoked.
    Delete {
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub async fn user(client: &Client, command: &UserCommand) -> Outcome<()> {
    let path = |id: &str| format!("/api/v1/users/{}", encode(id));
    match command {
        UserCommand::List { json } => {
            let header = ["ID", "E-MAIL", "NAME", "STATE", "ROLES", "LAST LOGIN (UTC)"];
            let row = |u: &Value| {
                vec![
                    cell(&u["id"]),
                    cell(&u["email"]),
                    cell(&u["name"]),
                    cell(&u["state"]),
                    words(&u["roles"]),
                    time(&u["last_login_at"]),
                ]
            };
            list(client, "/api/v1/users?limit=1000", *json, &header, row).await
        }
        UserCommand::Show { id } => show(client, &path(id)).await,
        UserCommand::Create {
            email,
            roles,
            name,
            no_password,
        } => {
            let password = if *no_password {
                None
            } else {
                Some(read_password()?)
            };
            let body = json!({"email": email, "roles": roles, "name": name, "password": password});
            let user = client.post("/api/v1/users", &body).await?;
            println!("User {} is there.", cell(&user["id"]));
            Ok(())
        }
        UserCommand::Invite { roles } => {
            let invite = client
                .post("/api/v1/users/invites", &json!({"roles": roles}))
                .await?;
            println!("{}", cell(&invite["invite"]));
            eprintln!(
                "Whoever registers with it in time (until {} UTC) becomes a user of `{}`. It is not shown again.",
                time(&invite["expires_at"]),
                cell(&invite["tenant"])
            );
            Ok(())
        }
        UserCommand::Roles { id, roles } => {
            client.patch(&path(id), &json!({"roles": roles})).await?;
            println!("User {id} is {} now.", roles.join(", "));
            Ok(())
        }
        UserCommand::Disable { id } => {
            client
                .patch(&path(id), &json!({"state": "DISABLED"}))
                .await?;
            println!("User {id} can log in no more.");
            Ok(())
        }
        UserCommand::Enable { id } => {
            let body = json!({"state": "ACTIVE", "unlock": true});
            client.patch(&path(id), &body).await?;
            println!("User {id} can log in.");
            Ok(())
        }
        UserCommand::Delete { id, yes } => {
            if !yes {
                return Err(Failure::usage(format!(
                    "this removes user {id}; repeat it with --yes"
                )));
            }
            client.delete(&path(id)).await?;
            println!("User {id} is gone.");
            Ok(())
        }
    }
}

/// Tenants of the installation.
#[derive(Subcommand)]
pub enum TenantCommand {
    /// All tenants that you may see.
    List {
        #[arg(long)]
        json: bool,
    },
    /// One tenant; your own unless named.
    Show {
        #[arg(default_value = "current")]
        name: String,
    },
    /// What a tenant may have of everything, and has; with options, set it (operators of the installation only).
    #[command(after_help = "Example: va tenant quota shop --documents 10000 --users unlimited")]
    Quota {
        #[arg(default_value = "current")]
        name: String,
        /// Documents that are not removed; a number, or `unlimited`, as with the others.
        #[arg(long)]
        documents: Option<Limit>,
        /// Bytes of the newest version of each of them.
        #[arg(long)]
        storage_bytes: Option<Limit>,
        #[arg(long)]
        collections: Option<Limit>,
        #[arg(long)]
        users: Option<Limit>,
        /// API keys that are neither revoked nor expired.
        #[arg(long)]
        keys: Option<Limit>,
        #[arg(long)]
        conversations: Option<Limit>,
        #[arg(long)]
        json: bool,
    },
    /// Make a tenant and its first admin key, which is printed this once.
    #[command(after_help = "Example: va tenant create shop --description 'the web shop'")]
    Create {
        name: String,
        #[arg(long, default_value = "")]
        description: String,
    },
}

/// A limit of a tenant: a number, or none.
#[derive(Debug, Clone, Copy)]
pub struct Limit(Option<u64>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" => Ok(Self(None)),
            number => number
                .parse()
                .map(|number| Self(Some(number)))
                .map_err(|_| format!("`{number}` is no limit: use a whole number, or `unlimited`")),
        }
    }
}

pub async fn tenant(client: &Client, command: &TenantCommand) -> Outcome<()> {
    match command {
        TenantCommand::List { json } => {
            let header = ["NAME", "CREATED (UTC)", "DESCRIPTION"];
            let row = |t: &Value| {
                vec![
                    cell(&t["name"]),
                    time(&t["created_at"]),
                    cell(&t["description"]),
                ]
            };
            list(client, "/api/v1/tenants?limit=1000", *json, &header, row).await
        }
        TenantCommand::Show { name } => {
            let path = format!("/api/v1/tenants/{}", encode(name));
            let mut tenant: Value = client.get(&path).await?;
            let quotas: Value = client.get(&format!("{path}/quotas")).await?;
            tenant["quotas"] = quotas["quotas"].clone();
            println!("{}", serde_json::to_string_pretty(&tenant)?);
            Ok(())
        }
        TenantCommand::Quota {
            name,
            documents,
            storage_bytes,
            collections,
            users,
            keys,
            conversations,
            json,
        } => {
            let path = format!("/api/v1/tenants/{}/quotas", encode(name));
            let mut changes = Map::new();
            for (quota, limit) in [
                ("documents", documents),
                ("storage_bytes", storage_bytes),
                ("collections", collections),
                ("users", users),
                ("keys", keys),
                ("conversations", conversations),
            ] {
                if let Some(Limit(limit)) = limit {
                    changes.insert(quota.to_owned(), json!(limit));
                }
            }
            let reply = if changes.is_empty() {
                client.get::<Value>(&path).await?
            } else {
                client.patch(&path, &changes).await?
            };
            if *json {
                println!("{reply}");
                return Ok(());
            }
            let rows = reply["quotas"].as_object().into_iter().flatten();
            let rows: Vec<Vec<String>> = rows
                .map(|(quota, told)| {
                    let limit = match told["limit"].is_null() {
                        true => "unlimited".to_owned(),
                        false => cell(&told["limit"]),
                    };
                    vec![quota.clone(), cell(&told["used"]), limit]
                })
                .collect();
            print(&["QUOTA", "USED", "LIMIT"], &rows);
            Ok(())
        }
        TenantCommand::Create { name, description } => {
            let body = json!({"name": name, "description": description});
            let tenant = client.post("/api/v1/tenants", &body).await?;
            println!("{}", cell(&tenant["key"]));
            eprintln!("Tenant `{name}` is there. That was its admin key; it is not shown again.");
            Ok(())
        }
    }
}

/// API keys of the tenant.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// All keys, never the keys themselves.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Make a key; it is printed this once.
    #[command(
        after_help = "Example: va key create indexer --scope write\n         va key create chat --permission models.use --model qwen --expires-days 30"
    )]
    Create {
        name: String,
        /// read, write or admin; may be repeated.
        #[arg(long = "scope")]
        scopes: Vec<String>,
        /// A single permission; may be repeated.
        #[arg(long = "permission")]
        permissions: Vec<String>,
        /// A model that it may call; may be repeated. All when left out.
        #[arg(long = "model")]
        models: Vec<String>,
        /// After how many days it ends; never when left out.
        #[arg(long)]
        expires_days: Option<u32>,
    },
    /// Make a key useless from now on.
    Revoke { id: String },
}

pub async fn key(client: &Client, command: &KeyCommand) -> Outcome<()> {
    match command {
        KeyCommand::List { json } => {
            let header = [
                "ID",
                "BEGINS",
                "NAME",
                "MAY",
                "LAST USED (UTC)",
                "EXPIRES (UTC)",
                "REVOKED (UTC)",
            ];
            let row = |k: &Value| {
                let may = [words(&k["scopes"]), words(&k["permissions"])];
                let may: Vec<String> = may.into_iter().filter(|part| !part.is_empty()).collect();
                vec![
                    cell(&k["id"]),
                    cell(&k["prefix"]),
                    cell(&k["name"]),
                    may.join(", "),
                    time(&k["last_used_at"]),
                    time(&k["expires_at"]),
                    time(&k["revoked_at"]),
                ]
            };
            list(client, "/api/v1/keys?limit=1000", *json, &header, row).await
        }
        KeyCommand::Create {
            name,
            scopes,
            permissions,
            models,
            expires_days,
        } => {
            if scopes.is_empty() && permissions.is_empty() {
                return Err(Failure::usage(
                    "say what the key may do: --scope read|write|admin, or --permission NAME",
                ));
            }
            let mut body = json!({"name": name, "scopes": scopes, "permissions": permissions});
            if !models.is_empty() {
                body["models"] = json!(models);
            }
            if let Some(days) = expires_days {
                let lasts_ms = i64::from(*days) * 86_400_000;
                body["expires_at"] = json!(crate::platform::now_ms() + lasts_ms);
            }
            let key = client.post("/api/v1/keys", &body).await?;
            println!("{}", cell(&key["key"]));
            eprintln!("That is key {}; it is not shown again.", cell(&key["id"]));
            Ok(())
        }
        KeyCommand::Revoke { id } => {
            client
                .delete(&format!("/api/v1/keys/{}", encode(id)))
                .await?;
            println!("Key {id} opens nothing any more.");
            Ok(())
        }
    }
}

/// The first line of standard input.
fn read_password() -> Outcome<String> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("Password (it is shown while you type; better pipe it in):");
    }
    let mut line = String::new();
    input.lock().read_line(&mut line)?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failure::usage(
            "the password comes from standard input, which was empty; or use --no-password",
        ));
    }
    Ok(password.to_owned())
}

async fn show(client: &Client, path: &str) -> Outcome<()> {
    let value: Value = client.get(path).await?;
    println!("{}", serde_json::to_string_pretty(&value)?);
    Ok(())
}

async fn list(
    client: &Client,
    path: &str,
    json: bool,
    header: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Outcome<()> {
    let list: Value = client.get(path).await?;
    if json {
        println!("{list}");
        return Ok(());
    }
    let items = list["items"].as_array().into_iter().flatten();
    print(header, &items.map(row).collect::<Vec<_>>());
    if !list["cursor"].is_null() {
        println!("... more; use the HTTP API");
    }
    Ok(())
}

fn words(list: &Value) -> String {
    let words: Vec<String> = list.as_array().into_iter().flatten().map(cell).collect();
    words.join(", ")
}
