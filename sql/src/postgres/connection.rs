//! One connection: simple and extended queries of one tenant.
//!
//! SET, SHOW and transactions are answered by `datafusion-postgres`; rows go through the engine, so that the same
//! checks and limits hold as for every other way in.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ParamValues};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{EmptyRelation, Expr, LogicalPlan};
use datafusion::sql::parser;
use datafusion::sql::sqlparser::ast::Statement;
use datafusion_postgres::QueryHook;
use datafusion_postgres::arrow_pg::datatypes::{
    arrow_schema_to_pg_fields, df::deserialize_parameters, encode_recordbatch, into_pg_type,
};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::auth::StartupHandler;
use datafusion_postgres::pgwire::api::cancel::CancelHandler;
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::stmt::QueryParser;
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{
    ClientInfo, ClientPortalStore, PgWireServerHandlers, RandomPidSecretKeyGenerator, Type,
};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use futures::{Sink, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cancel::{Cancellable, Cancels};
use super::startup::KeyCheck;
use super::statements::{Ask, classify, client_error, fatal};
use crate::engine::{SqlEngine, TenantSession, first_words};
use crate::error::SqlError;
use crate::functions::{bind_parameters, parameter_types};

/// Where `datafusion-postgres` keeps `SET statement_timeout`, in milliseconds.
const STATEMENT_TIMEOUT: &str = "statement_timeout_ms";

/// A prepared statement: its text, and what it is unless it is empty. The shape that the hooks of
/// `datafusion-postgres` expect in the portal store.
type Prepared = (String, Option<(Statement, LogicalPlan)>);

/// One connection, before and after its login.
pub(super) struct Connection {
    pub(super) engine: Arc<SqlEngine>,
    pub(super) auth: Arc<dyn KeyCheck>,
    pub(super) cancels: Arc<Cancels>,
    pub(super) logins: Arc<Semaphore>,
    pub(super) ids: Arc<RandomPidSecretKeyGenerator>,
    parser: Arc<PostgresCompatibilityParser>,
    pub(super) login: OnceLock<Login>,
}

/// What a connection has once it is logged in.
pub(super) struct Login {
    pub(super) session: Arc<TenantSession>,
    pub(super) cancellable: Option<Cancellable>,
    /// Counts the connection.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        engine: Arc<SqlEngine>,
        auth: Arc<dyn KeyCheck>,
        cancels: Arc<Cancels>,
        logins: Arc<Semaphore>,
        ids: Arc<RandomPidSecretKeyGenerator>,
        parser: Arc<PostgresCompatibilityParser>,
    ) -> Self {
        Self {
            engine,
            auth,
            cancels,
            logins,
            ids,
            parser,
            login: OnceLock::new(),
        }
    }

    /// The login. `pgwire` goes on reading after a refused password, so every query must ask.
    fn login(&self) -> PgWireResult<&Login> {
        self.login
            .get()
            .ok_or_else(|| fatal("28000", "not logged in"))
    }

    fn parse(&self, sql: &str) -> PgWireResult<Vec<Statement>> {
        self.parser
            .parse(sql)
            .map_err(|error| client_error(SqlError::Invalid(error.to_string())))
    }

    async fn plan(&self, statement: &Statement) -> PgWireResult<LogicalPlan> {
        let session = &self.login()?.session;
        let statement = parser::Statement::Statement(Box::new(statement.clone()));
        let plan = async {
            session.names.refresh().await?;
            session.plan(statement).await
        };
        plan.await.map_err(client_error)
    }

    /// Runs a plan; the rows are computed as the client takes them.
    async fn rows<C: ClientInfo + ?Sized>(
        &self,
        client: &C,
        plan: LogicalPlan,
        format: &Format,
    ) -> PgWireResult<Response> {
        let login = self.login()?;
        let timeout = client.metadata().get(STATEMENT_TIMEOUT);
        let timeout = timeout
            .and_then(|ms| ms.parse().ok())
            .map(Duration::from_millis);
        let cancel = login.cancellable.as_ref().map(Cancellable::next_query);
        let budget = self.engine.budget(timeout, cancel.unwrap_or_default());
        let run = budget.within(login.session.run(plan, &budget));
        let batches = run.await.map_err(client_error)?;

        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        let fields = arrow_schema_to_pg_fields(&batches.schema(), format, Some(options))?;
        let fields = Arc::new(fields);
        let encoded = fields.clone();
        let rows = batches.flat_map(move |batch| {
            let rows: Vec<_> = match batch {
                Ok(batch) => encode_recordbatch(encoded.clone(), batch).collect(),
                Err(error) => vec![Err(client_error(error.into()))],
            };
            futures::stream::iter(rows)
        });
        Ok(Response::Query(QueryResponse::new(fields, rows)))
    }

    /// The answer to a statement that needs no plan; `None` when it needs one.
    async fn answer(
        &self,
        client: &mut dyn HookClient,
        statement: &Statement,
    ) -> Option<PgWireResult<Response>> {
        let context = match self.login() {
            Ok(login) => &login.session.context,
            Err(error) => return Some(Err(error)),
        };
        // Also refuses everything but its end in a transaction that failed.
        let transaction = TransactionStatementHook
            .handle_simple_query(statement, context, client)
            .await;
        if transaction.is_some() {
            return transaction;
        }
        match classify(statement) {
            Ask::Rows | Ask::Transaction => None,
            Ask::Setting | Ask::Shown => {
                SetShowHook
                    .handle_simple_query(statement, context, client)
                    .await
            }
            Ask::Nothing(tag) => Some(Ok(Response::Execution(Tag::new(tag)))),
            Ask::Refused => Some(Err(refused(statement))),
        }
    }
}

fn refused(statement: &Statement) -> PgWireError {
    client_error(SqlError::ReadOnly(first_words(&statement.to_string())))
}

fn invalid(error: DataFusionError) -> PgWireError {
    client_error(error.into())
}

#[async_trait]
impl SimpleQueryHandler for Connection {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.login()?;
        let statements = self.parse(query)?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let mut responses = Vec::with_capacity(statements.len());
        for statement in &statements {
            responses.push(match self.answer(client, statement).await {
                Some(response) => response?,
                None => {
                    let plan = self.plan(statement).await?;
                    self.rows(client, plan, &Format::UnifiedText).await?
                }
            });
        }
        Ok(responses)
    }
}

/// The handlers of a connection, as `pgwire` asks for them.
#[derive(Clone)]
pub(super) struct Handlers(pub(super) Arc<Connection>);

impl PgWireServerHandlers for Handlers {
    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        self.0.clone()
    }

    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        self.0.clone()
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::new(self.clone())
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        self.0.cancels.clone()
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handlers {
    type Statement = Prepared;
    type QueryParser = Connection;

    fn query_parser(&self) -> Arc<Connection> {
        self.0.clone()
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Prepared>,
        _: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.0.login()?;
        let Some((statement, plan)) = &portal.statement.statement.1 else {
            return Ok(Response::EmptyQuery);
        };
        if let Some(response) = self.0.answer(client, statement).await {
            return response;
        }
        let types = types_in_order(plan).map_err(invalid)?;
        let types: Vec<Option<&DataType>> = types.iter().map(Option::as_ref).collect();
        let values: ParamValues = deserialize_parameters(portal, &types)?;
        let plan = plan.clone().replace_params_with_values(&values);
        let plan = plan
            .and_then(|plan| bind_parameters(plan, &values))
            .map_err(invalid)?;
        self.0
            .rows(client, plan, &portal.result_column_format)
            .await
    }
}

#[async_trait]
impl QueryParser for Connection {
    type Statement = Prepared;

    async fn parse_sql<C>(
        &self,
        client: &C,
        sql: &str,
        _: &[Option<Type>],
    ) -> PgWireResult<Prepared>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let context = &self.login()?.session.context;
        let mut statements = self.parse(sql)?;
        if statements.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement".to_owned();
            return Err(client_error(SqlError::Invalid(message)));
        }
        let Some(statement) = statements.pop() else {
            return Ok((sql.to_owned(), None));
        };
        let plan = match classify(&statement) {
            Ask::Rows => self.plan(&statement).await?,
            Ask::Setting | Ask::Shown => {
                let shape = SetShowHook
                    .handle_extended_parse_query(&statement, context, client)
                    .await;
                shape.unwrap_or_else(|| Ok(no_rows()))?
            }
            Ask::Transaction | Ask::Nothing(_) => no_rows(),
            Ask::Refused => return Err(refused(&statement)),
        };
        Ok((statement.to_string(), Some((statement, plan))))
    }

    fn get_parameter_types(&self, prepared: &Prepared) -> PgWireResult<Vec<Type>> {
        let Some((_, plan)) = &prepared.1 else {
            return Ok(Vec::new());
        };
        let types = types_in_order(plan).map_err(invalid)?;
        types
            .iter()
            .map(|found| found.as_ref().map_or(Ok(Type::UNKNOWN), into_pg_type))
            .collect()
    }

    fn get_result_schema(
        &self,
        prepared: &Prepared,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        let Some((_, plan)) = &prepared.1 else {
            return Ok(Vec::new());
        };
        let format = format.unwrap_or(&Format::UnifiedText);
        arrow_schema_to_pg_fields(plan.schema().as_arrow(), format, None)
    }
}

/// The plan of a statement that is answered without one.
fn no_rows() -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation {
        produce_one_row: false,
        schema: Arc::new(DFSchema::empty()),
    })
}

/// The types of `$1`, `$2`, ...; `None` where the plan does not tell.
fn types_in_order(plan: &LogicalPlan) -> datafusion::error::Result<Vec<Option<DataType>>> {
    let mut types: HashMap<String, Option<DataType>> = plan.get_parameter_types()?;
    // What DataFusion leaves open, `$1::int` says.
    plan.apply_with_subqueries(|node| {
        for expr in node.expressions() {
            expr.apply(|expr| {
                if let Expr::Cast(cast) = expr
                    && let Expr::Placeholder(placeholder) = cast.expr.as_ref()
                {
                    let known = types.entry(placeholder.id.clone()).or_default();
                    known.get_or_insert_with(|| cast.field.data_type().clone());
                } else if let Expr::Placeholder(placeholder) = expr {
                    types.entry(placeholder.id.clone()).or_default();
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    for (id, data_type) in parameter_types(plan)? {
        types.insert(id, Some(data_type));
    }
    let number = |id: &str| id.trim_start_matches('$').parse::<usize>().ok();
    let count = types.keys().filter_map(|id| number(id)).max().unwrap_or(0);
    // The protocol counts parameters in 16 bits, so a larger number cannot have been meant.
    let mut in_order = vec![None; count.min(usize::from(u16::MAX))];
    for (id, data_type) in types {
        if let Some(slot) = number(&id).and_then(|n| in_order.get_mut(n.checked_sub(1)?)) {
            *slot = data_type;
        }
    }
    Ok(in_order)
}
