//! Every route with what it needs, in one table: method, path, access, handler.
//!
//! [`Routes::add`] is the only way to register a handler, and it takes an [`Access`], so there is no route without one.
//! The check itself is in `auth.rs`; a test compares the table with the OpenAPI document, where each operation repeats its
//! access as `x-permission`, and another walks all of them with two tenants and every role.

use std::collections::HashMap;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use va_catalog::Permission;

use super::{
    App, audit, auth, bulk, collections, conversations, dead_letters, documents, keys, logins,
    oidc, operations, pipelines, quotas, rag, readers, roles, search, sql, tenants, topics, users,
    v1, versions,
};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a credential.
    Public,
    /// Whoever shows a valid credential.
    SignedIn,
    /// Whoever has the permission; it reaches what is the caller's tenant's.
    Needs(Permission),
    /// Whoever has the permission in the default tenant, which runs the installation: what the call reaches is not of one
    /// tenant.
    Operator(Permission),
}

impl Access {
    /// As `x-permission` of the OpenAPI document tells it.
    pub fn declared(self) -> String {
        match self {
            Self::Public => "public".to_owned(),
            Self::SignedIn => "signed-in".to_owned(),
            Self::Needs(permission) => permission.to_string(),
            Self::Operator(permission) => format!("operator:{permission}"),
        }
    }
}

/// One route.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    handler: MethodRouter<App>,
}

/// A table of routes.
#[derive(Default)]
pub struct Routes(Vec<Route>);

/// What [`Routes`] say of access, for the check on each request.
#[derive(Debug, Default)]
pub struct AccessTable(HashMap<&'static str, Vec<(Method, Access)>>);

impl AccessTable {
    /// The access of a path and a method. A path that is there, with a method that is not, needs a credential: then the
    /// router says which methods there are.
    pub fn of(&self, path: &str, method: &Method) -> Access {
        // What answers GET answers HEAD.
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        let found = self
            .0
            .get(path)
            .and_then(|methods| methods.iter().find(|(other, _)| other == method));
        found.map_or(Access::SignedIn, |(_, access)| *access)
    }
}

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    /// One more route.
    #[must_use]
    pub fn add<H, T>(
        mut self,
        method: Method,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let filter = MethodFilter::try_from(method.clone())
            .expect("routes are declared with the methods that HTTP defines");
        self.0.push(Route {
            method,
            path,
            access,
            handler: on(filter, handler),
        });
        self
    }

    /// [`Routes::add`] of GET.
    #[must_use]
    pub fn get<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add(Method::GET, path, access, handler)
    }

    /// [`Routes::add`] of POST.
    #[must_use]
    pub fn post<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add(Method::POST, path, access, handler)
    }

    /// [`Routes::add`] of PUT.
    #[must_use]
    pub fn put<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add(Method::PUT, path, access, handler)
    }

    /// [`Routes::add`] of PATCH.
    #[must_use]
    pub fn patch<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add(Method::PATCH, path, access, handler)
    }

    /// [`Routes::add`] of DELETE.
    #[must_use]
    pub fn delete<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add(Method::DELETE, path, access, handler)
    }

    /// The routes of another table, too.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Of these routes, the largest body that handlers take as a whole, in bytes.
    #[must_use]
    pub fn bodies_max(mut self, bytes: usize) -> Self {
        for route in &mut self.0 {
            let handler = std::mem::take(&mut route.handler);
            route.handler = handler.layer(DefaultBodyLimit::max(bytes));
        }
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// The router of these routes, and what each of them needs.
    pub fn into_router(self) -> (Router<App>, AccessTable) {
        let mut table = AccessTable::default();
        let mut router = Router::new();
        for route in self.0 {
            let access = (route.method, route.access);
            table.0.entry(route.path).or_default().push(access);
            router = router.route(route.path, route.handler);
        }
        (router, table)
    }
}

/// What supervisors and Prometheus ask for, of every role.
pub fn operations() -> Routes {
    use Access::Public;
    Routes::new()
        .get("/healthz", Public, operations::healthz)
        .get("/readyz", Public, operations::readyz)
        .get("/metrics", Public, operations::metrics)
}

/// The API.
pub fn api() -> Routes {
    Routes::new()
        .merge(identity())
        .merge(content())
        .merge(talk())
        .merge(flows())
        .merge(dead_letters::routes())
        .merge(v1::routes())
        .merge(versions::routes())
}

/// Logins, users, keys, roles, tenants and the audit trail.
#[rustfmt::skip] // One route a line, as the table that it is.
fn identity() -> Routes {
    use Access::{Needs, Operator, Public, SignedIn};
    use Permission::*;
    Routes::new()
        .get("/openapi.json", Public, operations::openapi)
        .get("/.well-known/jwks.json", Public, logins::key_set)
        .post("/api/v1/auth/register", Public, logins::register)
        .post("/api/v1/auth/login", Public, logins::login)
        .post("/api/v1/auth/refresh", Public, logins::refresh)
        .get("/api/v1/auth/oidc/login", Public, oidc::begin)
        .get("/api/v1/auth/oidc/callback", Public, oidc::callback)
        .post("/api/v1/auth/verify", SignedIn, logins::verify)
        .post("/api/v1/auth/logout", SignedIn, logins::logout)
        .post("/api/v1/auth/password", SignedIn, logins::password)
        .post("/api/v1/auth/check", SignedIn, auth::check)
        .post("/api/v1/auth/rotate", Operator(PlatformManage), logins::rotate)
        .get("/api/v1/users", Needs(UsersRead), users::list)
        .post("/api/v1/users", Needs(UsersManage), users::create)
        .post("/api/v1/users/invites", Needs(UsersManage), users::invite)
        .get("/api/v1/users/me", SignedIn, users::me)
        .patch("/api/v1/users/me", SignedIn, users::update_me)
        .get("/api/v1/users/me/export", SignedIn, users::export_me)
        .put("/api/v1/users/me/preferences", SignedIn, users::preferences)
        .get("/api/v1/users/{id}", Needs(UsersRead), users::get)
        .patch("/api/v1/users/{id}", Needs(UsersManage), users::update)
        .delete("/api/v1/users/{id}", Needs(UsersManage), users::delete)
        .get("/api/v1/users/{id}/export", Needs(UsersManage), users::export)
        .get("/api/v1/roles", Needs(UsersRead), roles::list)
        .post("/api/v1/roles", Needs(RolesManage), roles::create)
        .get("/api/v1/roles/{role}", Needs(UsersRead), roles::get)
        .put("/api/v1/roles/{role}", Needs(RolesManage), roles::replace)
        .delete("/api/v1/roles/{role}", Needs(RolesManage), roles::delete)
        .get("/api/v1/keys", Needs(KeysRead), keys::list)
        .post("/api/v1/keys", Needs(KeysManage), keys::create)
        .get("/api/v1/keys/{id}", Needs(KeysRead), keys::get)
        .delete("/api/v1/keys/{id}", Needs(KeysManage), keys::revoke)
        .get("/api/v1/tenants", Needs(TenantRead), tenants::list)
        .post("/api/v1/tenants", Operator(PlatformManage), tenants::create)
        .get("/api/v1/tenants/{tenant}", Needs(TenantRead), tenants::get)
        .patch("/api/v1/tenants/{tenant}", Needs(TenantManage), tenants::update)
        .get("/api/v1/tenants/{tenant}/quotas", Needs(TenantRead), quotas::get)
        .patch("/api/v1/tenants/{tenant}/quotas", Operator(PlatformManage), quotas::update)
        .get("/api/v1/audit", Needs(AuditRead), audit::list)
}

/// Collections, documents and what is asked of them.
#[rustfmt::skip] // One route a line, as the table that it is.
fn content() -> Routes {
    use Access::Needs;
    use Permission::*;
    let read = Needs(DocumentsRead);
    let write = Needs(DocumentsWrite);
    Routes::new()
        .get("/api/v1/collections", Needs(CollectionsRead), collections::list)
        .post("/api/v1/collections", Needs(CollectionsWrite), collections::create)
        .get("/api/v1/collections/{collection}", Needs(CollectionsRead), collections::get)
        .delete("/api/v1/collections/{collection}", Needs(CollectionsWrite), collections::delete)
        .get("/api/v1/collections/{collection}/verify", read, collections::verify)
        .get("/api/v1/collections/{collection}/documents", read, documents::list)
        .post("/api/v1/collections/{collection}/documents", write, documents::upload)
        .post("/api/v1/collections/{collection}/documents/bulk", write, bulk::upload)
        .post("/api/v1/collections/{collection}/documents/check", read, bulk::check)
        .post("/api/v1/collections/{collection}/documents/delete", write, bulk::delete)
        .post("/api/v1/collections/{collection}/documents/states", read, bulk::states)
        .get("/api/v1/collections/{collection}/documents/under", read, bulk::under)
        .get("/api/v1/collections/{collection}/documents/{id}", read, documents::get)
        .delete("/api/v1/collections/{collection}/documents/{id}", write, documents::delete)
        .put("/api/v1/collections/{collection}/documents/{id}/readers", write, readers::replace)
        .get("/api/v1/collections/{collection}/documents/{id}/versions", read, documents::versions)
        .post("/api/v1/retrieval/hybrid_search", Needs(Search), search::hybrid_search)
        .post("/api/v1/rag/query", Needs(Chat), rag::query)
        .post("/api/v1/sql", Needs(SqlRead), sql::query)
}

/// Conversations of the caller.
#[rustfmt::skip] // One route a line, as the table that it is.
fn talk() -> Routes {
    let chat = Access::Needs(Permission::Chat);
    Routes::new()
        .post("/api/v1/chat", chat, conversations::chat)
        .get("/api/v1/conversations", chat, conversations::list)
        .post("/api/v1/conversations", chat, conversations::create)
        .get("/api/v1/conversations/{conversation}", chat, conversations::get)
        .patch("/api/v1/conversations/{conversation}", chat, conversations::update)
        .delete("/api/v1/conversations/{conversation}", chat, conversations::delete)
        .get("/api/v1/conversations/{conversation}/messages", chat, conversations::messages)
        .get("/api/v1/conversations/{conversation}/messages/{message}/events", chat, conversations::events)
        .put("/api/v1/conversations/{conversation}/messages/{message}/feedback", chat, conversations::feedback)
        .post("/api/v1/conversations/{conversation}/regenerate", chat, conversations::regenerate)
        .post("/api/v1/conversations/{conversation}/stop", chat, conversations::stop)
        .bodies_max(conversations::BODY_BYTES_MAX)
}

/// Pipelines and topics. There is one log, and pipelines see all of it, so they are the operators'.
#[rustfmt::skip] // One route a line, as the table that it is.
fn flows() -> Routes {
    use Access::Operator;
    use Permission::*;
    let (read, manage) = (Operator(PipelinesRead), Operator(PipelinesManage));
    Routes::new()
        .get("/api/v1/status", Operator(PlatformRead), operations::status)
        .get("/api/v1/pipelines", read, pipelines::list)
        .post("/api/v1/pipelines", manage, pipelines::create)
        .get("/api/v1/pipelines/{pipeline}", read, pipelines::get)
        .delete("/api/v1/pipelines/{pipeline}", manage, pipelines::delete)
        .post("/api/v1/pipelines/{pipeline}/start", manage, pipelines::start)
        .post("/api/v1/pipelines/{pipeline}/stop", manage, pipelines::stop)
        // Of a pipeline that drops the column of the tenant, nobody can tell whose the rows are.
        .get("/api/v1/pipelines/{pipeline}/tap", manage, pipelines::tap)
        .get("/api/v1/topics", Operator(TopicsRead), topics::list)
        .post("/api/v1/topics", Operator(TopicsManage), topics::create)
        .get("/api/v1/topics/{topic}", Operator(TopicsRead), topics::get)
        .delete("/api/v1/topics/{topic}", Operator(TopicsManage), topics::delete)
        .get("/api/v1/topics/{topic}/records", Operator(TopicsRead), topics::consume)
        .post("/api/v1/topics/{topic}/records", Operator(TopicsWrite), topics::produce)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    /// `METHOD path` -> access.
    fn registered() -> BTreeMap<String, String> {
        operations()
            .merge(api())
            .iter()
            .map(|route| {
                // A wildcard is a parameter with slashes in it, which OpenAPI has no sign for.
                let name = format!("{} {}", route.method, route.path.replace("{*", "{"));
                (name, route.access.declared())
            })
            .collect()
    }

    #[test]
    fn the_openapi_document_tells_every_route_and_what_it_needs() {
        let document: Value =
            serde_json::from_str(super::super::operations::OPENAPI).expect("openapi.json is JSON");
        let mut told = BTreeMap::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let name = format!("{} {path}", method.to_uppercase());
                let access = operation["x-permission"].as_str();
                let access = access.unwrap_or_else(|| panic!("{name} has no `x-permission`"));
                let public = operation
                    .get("security")
                    .is_some_and(|s| *s == Value::Array(Vec::new()));
                assert_eq!(
                    public,
                    access == "public",
                    "{name}: `security` and `x-permission`"
                );
                told.insert(name, access.to_owned());
            }
        }
        assert_eq!(told, registered());
    }

    #[test]
    fn the_router_takes_the_table_and_knows_its_access() {
        let routes = operations().merge(api());
        let count = routes.iter().count();
        assert_eq!(count, registered().len(), "no route twice");
        // Panics when two handlers answer one method of one path.
        let (_, table) = routes.into_router();
        let path = "/api/v1/collections";
        let needs = Access::Needs(Permission::CollectionsRead);
        assert_eq!(table.of(path, &Method::GET), needs);
        assert_eq!(table.of(path, &Method::HEAD), needs);
        assert_eq!(table.of(path, &Method::DELETE), Access::SignedIn);
        assert_eq!(table.of("/elsewhere", &Method::GET), Access::SignedIn);
        assert_eq!(table.of("/healthz", &Method::HEAD), Access::Public);
    }
}
