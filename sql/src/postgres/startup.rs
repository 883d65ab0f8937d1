//! Who connects: asks for the password, checks it as an API key, and opens the tenant's session.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use datafusion_postgres::pgwire::api::auth::{
    DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use datafusion_postgres::pgwire::api::{
    ClientInfo, METADATA_USER, PgWireConnectionState, PidSecretKeyGenerator,
};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::startup::Authentication;
use datafusion_postgres::pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use futures::{Sink, SinkExt};
use va_catalog::{Catalog, Permission, TenantScope, Viewer};

use super::connection::{Connection, Login};
use super::statements::fatal;
use crate::tenant::CATALOG;

/// Says whose an API key is.
#[async_trait]
pub trait KeyCheck: Send + Sync {
    /// The tenant that the key lets read, and as whom; `None` for an unknown or revoked key, or one that may not read.
    async fn tenant_of(&self, key: &str) -> Result<Option<(TenantScope, Viewer)>, String>;
}

#[async_trait]
impl KeyCheck for Catalog {
    async fn tenant_of(&self, key: &str) -> Result<Option<(TenantScope, Viewer)>, String> {
        let principal = self
            .check_key(key)
            .await
            .map_err(|error| error.to_string())?;
        Ok(principal
            .filter(|principal| principal.permissions.contains(Permission::SqlRead))
            .map(|principal| (principal.tenant.clone(), principal.viewer())))
    }
}

#[async_trait]
impl StartupHandler for Connection {
    async fn on_startup<C>(
        &self,
        client: &mut C,
        message: PgWireFrontendMessage,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                let ask = PgWireBackendMessage::Authentication(Authentication::CleartextPassword);
                client.send(ask).await?;
            }
            PgWireFrontendMessage::PasswordMessageFamily(password) => {
                let password = password.into_password()?.password;
                let user = client.metadata().get(METADATA_USER).cloned();
                let user = user.unwrap_or_default();
                let mut login = self.log_in(&user, &password).await?;
                let (id, secret) = self.ids.generate(client);
                client.set_pid_and_secret_key(id, secret.clone());
                login.cancellable = Some(self.cancels.register(id, secret));
                if self.login.set(login).is_err() {
                    return Err(fatal("08P01", "already logged in"));
                }
                let mut parameters = DefaultServerParameterProvider::default();
                parameters.is_superuser = false;
                parameters.default_transaction_read_only = true;
                finish_authentication(client, &parameters).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Connection {
    async fn log_in(&self, user: &str, key: &str) -> PgWireResult<Login> {
        let Ok(permit) = self.logins.clone().try_acquire_owned() else {
            return Err(fatal(
                "53300",
                "too many connections; close some, or try again",
            ));
        };
        let found = match self.auth.tenant_of(key).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(error, "cannot check an API key");
                return Err(fatal(
                    "58000",
                    "the API key could not be checked; try again",
                ));
            }
        };
        // One message for every reason, so that it does not tell which tenants there are.
        let Some((tenant, viewer)) = found.filter(|(tenant, _)| tenant.as_str() == user) else {
            tracing::info!(user, "login refused");
            return Err(fatal(
                "28P01",
                &format!(
                    "password authentication failed for user \"{user}\"; \
                     the user is the tenant and the password one of its API keys"
                ),
            ));
        };
        let session = self.engine.open(&tenant, &viewer).await;
        let session = session.map_err(|error| fatal("58000", &error.to_string()))?;
        setup_pg_catalog(&session.context, CATALOG, EmptyContextProvider)
            .map_err(|error| fatal("58000", &error.to_string()))?;
        Ok(Login {
            session: Arc::new(session),
            cancellable: None,
            _permit: permit,
        })
    }
}
