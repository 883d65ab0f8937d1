//! Every route with what it needs, in one table: method, path, access, handler.
//!
//! [`Routes::add`] is the only way to register a handler, and it takes an [`Access`], so there is no route without one.
//! The check itself is in `auth.rs`; a test compares the table with the OpenAPI document, where each operation repeats its
//! access as `x-permission`, and another walks all of them with two tenants and every role.

use std::collections::HashMap;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use va_catalog::Permission;

use super::{
    App, audit, auth, bulk, collections, dead_letters, documents, keys, logins, operations,
    pipelines, roles, search, sql, tenants, topics, users, versions,
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

    /// The routes of another table, too.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.0.extend(other.0);
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
        .add(Method::GET, "/healthz", Public, operations::healthz)
        .add(Method::GET, "/readyz", Public, operations::readyz)
        .add(Method::GET, "/metrics", Public, operations::metrics)
}

/// The API.
pub fn api() -> Routes {
    Routes::new()
        .merge(identity())
        .merge(content())
        .merge(flows())
        .merge(dead_letters::routes())
        .merge(versions::routes())
}

/// Logins, users, keys, roles, tenants and the audit trail.
#[rustfmt::skip] // One route a line, as the table that it is.
fn identity() -> Routes {
    use Access::{Needs, Operator, Public, SignedIn};
    use Permission::*;
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let (patch, delete) = (Method::PATCH, Method::DELETE);
    Routes::new()
        .add(get.clone(), "/openapi.json", Public, operations::openapi)
        .add(get.clone(), "/.well-known/jwks.json", Public, logins::key_set)
        .add(post.clone(), "/api/v1/auth/register", Public, logins::register)
        .add(post.clone(), "/api/v1/auth/login", Public, logins::login)
        .add(post.clone(), "/api/v1/auth/refresh", Public, logins::refresh)
        .add(post.clone(), "/api/v1/auth/verify", SignedIn, logins::verify)
        .add(post.clone(), "/api/v1/auth/logout", SignedIn, logins::logout)
        .add(post.clone(), "/api/v1/auth/password", SignedIn, logins::password)
        .add(post.clone(), "/api/v1/auth/check", SignedIn, auth::check)
        .add(post.clone(), "/api/v1/auth/rotate", Operator(PlatformManage), logins::rotate)
        .add(get.clone(), "/api/v1/users", Needs(UsersRead), users::list)
        .add(post.clone(), "/api/v1/users", Needs(UsersManage), users::create)
        .add(post.clone(), "/api/v1/users/invites", Needs(UsersManage), users::invite)
        .add(get.clone(), "/api/v1/users/me", SignedIn, users::me)
        .add(patch.clone(), "/api/v1/users/me", SignedIn, users::update_me)
        .add(put.clone(), "/api/v1/users/me/preferences", SignedIn, users::preferences)
        .add(get.clone(), "/api/v1/users/{id}", Needs(UsersRead), users::get)
        .add(patch.clone(), "/api/v1/users/{id}", Needs(UsersManage), users::update)
        .add(delete.clone(), "/api/v1/users/{id}", Needs(UsersManage), users::delete)
        .add(get.clone(), "/api/v1/roles", Needs(UsersRead), roles::list)
        .add(post.clone(), "/api/v1/roles", Needs(RolesManage), roles::create)
        .add(get.clone(), "/api/v1/roles/{role}", Needs(UsersRead), roles::get)
        .add(put, "/api/v1/roles/{role}", Needs(RolesManage), roles::replace)
        .add(delete.clone(), "/api/v1/roles/{role}", Needs(RolesManage), roles::delete)
        .add(get.clone(), "/api/v1/keys", Needs(KeysRead), keys::list)
        .add(post.clone(), "/api/v1/keys", Needs(KeysManage), keys::create)
        .add(get.clone(), "/api/v1/keys/{id}", Needs(KeysRead), keys::get)
        .add(delete, "/api/v1/keys/{id}", Needs(KeysManage), keys::revoke)
        .add(get.clone(), "/api/v1/tenants", Needs(TenantRead), tenants::list)
        .add(post, "/api/v1/tenants", Operator(PlatformManage), tenants::create)
        .add(get.clone(), "/api/v1/tenants/{tenant}", Needs(TenantRead), tenants::get)
        .add(patch, "/api/v1/tenants/{tenant}", Needs(TenantManage), tenants::update)
        .add(get, "/api/v1/audit", Needs(AuditRead), audit::list)
}

/// Collections, documents and what is asked of them.
#[rustfmt::skip] // One route a line, as the table that it is.
fn content() -> Routes {
    use Access::Needs;
    use Permission::*;
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let read = Needs(DocumentsRead);
    let write = Needs(DocumentsWrite);
    Routes::new()
        .add(get.clone(), "/api/v1/collections", Needs(CollectionsRead), collections::list)
        .add(post.clone(), "/api/v1/collections", Needs(CollectionsWrite), collections::create)
        .add(get.clone(), "/api/v1/collections/{collection}", Needs(CollectionsRead), collections::get)
        .add(delete.clone(), "/api/v1/collections/{collection}", Needs(CollectionsWrite), collections::delete)
        .add(get.clone(), "/api/v1/collections/{collection}/verify", read, collections::verify)
        .add(get.clone(), "/api/v1/collections/{collection}/documents", read, documents::list)
        .add(post.clone(), "/api/v1/collections/{collection}/documents", write, documents::upload)
        .add(post.clone(), "/api/v1/collections/{collection}/documents/bulk", write, bulk::upload)
        .add(post.clone(), "/api/v1/collections/{collection}/documents/check", read, bulk::check)
        .add(post.clone(), "/api/v1/collections/{collection}/documents/delete", write, bulk::delete)
        .add(post.clone(), "/api/v1/collections/{collection}/documents/states", read, bulk::states)
        .add(get.clone(), "/api/v1/collections/{collection}/documents/under", read, bulk::under)
        .add(get.clone(), "/api/v1/collections/{collection}/documents/{id}", read, documents::get)
        .add(delete, "/api/v1/collections/{collection}/documents/{id}", write, documents::delete)
        .add(get, "/api/v1/collections/{collection}/documents/{id}/versions", read, documents::versions)
        .add(post.clone(), "/api/v1/retrieval/hybrid_search", Needs(Search), search::hybrid_search)
        .add(post, "/api/v1/sql", Needs(SqlRead), sql::query)
}

/// Pipelines and topics. There is one log, and pipelines see all of it, so they are the operators'.
#[rustfmt::skip] // One route a line, as the table that it is.
fn flows() -> Routes {
    use Access::Operator;
    use Permission::*;
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let (read, manage) = (Operator(PipelinesRead), Operator(PipelinesManage));
    Routes::new()
        .add(get.clone(), "/api/v1/status", Operator(PlatformRead), operations::status)
        .add(get.clone(), "/api/v1/pipelines", read, pipelines::list)
        .add(post.clone(), "/api/v1/pipelines", manage, pipelines::create)
        .add(get.clone(), "/api/v1/pipelines/{pipeline}", read, pipelines::get)
        .add(delete.clone(), "/api/v1/pipelines/{pipeline}", manage, pipelines::delete)
        .add(post.clone(), "/api/v1/pipelines/{pipeline}/start", manage, pipelines::start)
        .add(post.clone(), "/api/v1/pipelines/{pipeline}/stop", manage, pipelines::stop)
        // Of a pipeline that drops the column of the tenant, nobody can tell whose the rows are.
        .add(get.clone(), "/api/v1/pipelines/{pipeline}/tap", manage, pipelines::tap)
        .add(get.clone(), "/api/v1/topics", Operator(TopicsRead), topics::list)
        .add(post.clone(), "/api/v1/topics", Operator(TopicsManage), topics::create)
        .add(get.clone(), "/api/v1/topics/{topic}", Operator(TopicsRead), topics::get)
        .add(delete, "/api/v1/topics/{topic}", Operator(TopicsManage), topics::delete)
        .add(get, "/api/v1/topics/{topic}/records", Operator(TopicsRead), topics::consume)
        .add(post, "/api/v1/topics/{topic}/records", Operator(TopicsWrite), topics::produce)
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
                let name = format!("{} {}", route.method, route.path);
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
