//! The engine: sessions of tenants, and queries with a deadline and a memory bound.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use datafusion::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SendableRecordBatchStream, object_store};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use va_catalog::{TenantScope, Viewer};

use crate::error::SqlError;
use crate::functions::HybridSearch;
use crate::services::SqlServices;
use crate::tenant::{CATALOG, PUBLIC, TenantNames, catalog};

/// What a query may use.
#[derive(Debug, Clone)]
pub struct SqlLimits {
    /// From the start of planning to the last row read. 30 s unless set.
    pub timeout: Duration,
    /// For sorting, grouping and joining, of all queries together. 512 MiB unless set. There is no spilling to disk.
    pub memory_bytes: usize,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            memory_bytes: 512 << 20,
        }
    }
}

/// Runs SQL for tenants. Share it in an `Arc`.
#[derive(Debug)]
pub struct SqlEngine {
    services: Arc<SqlServices>,
    limits: SqlLimits,
    runtime: Arc<RuntimeEnv>,
}

impl SqlEngine {
    /// An engine with the default limits.
    pub fn new(services: SqlServices) -> Result<Self, SqlError> {
        Self::with_limits(services, SqlLimits::default())
    }

    pub fn with_limits(services: SqlServices, limits: SqlLimits) -> Result<Self, SqlError> {
        let no_files = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.memory_bytes)))
            .with_disk_manager_builder(no_files)
            .with_object_store_registry(Arc::new(NoStores))
            .build_arc()?;
        Ok(Self {
            services: Arc::new(services),
            limits,
            runtime,
        })
    }

    /// A session that sees all the tenant's rows, whoever may read the documents. The lists of names in
    /// `information_schema` are as of now; tables are looked up when they are named. Statements that are run on it directly have no deadline and are not checked
    /// to only read: use [`SqlEngine::query`] for text from outside.
    pub async fn session(&self, tenant: &TenantScope) -> Result<SessionContext, SqlError> {
        Ok(self.open(tenant, &Viewer::Everything).await?.context)
    }

    /// Runs one statement that only reads, for somebody who sees all of the tenant's documents. The rows come as they are
    /// computed; dropping the stream ends the query.
    pub async fn query(
        &self,
        tenant: &TenantScope,
        sql: &str,
    ) -> Result<(SchemaRef, SendableRecordBatchStream), SqlError> {
        self.query_as(tenant, &Viewer::Everything, sql).await
    }

    /// [`SqlEngine::query`] with what the viewer may read.
    pub async fn query_as(
        &self,
        tenant: &TenantScope,
        viewer: &Viewer,
        sql: &str,
    ) -> Result<(SchemaRef, SendableRecordBatchStream), SqlError> {
        let budget = self.budget(None, CancellationToken::new());
        let stream = budget
            .within(async {
                let session = self.open(tenant, viewer).await?;
                let state = session.context.state();
                let statement = state.sql_to_statement(sql, &Dialect::PostgreSQL)?;
                let plan = session.plan(statement).await?;
                session.run(plan, &budget).await
            })
            .await?;
        Ok((stream.schema(), stream))
    }

    pub(crate) async fn open(
        &self,
        tenant: &TenantScope,
        viewer: &Viewer,
    ) -> Result<TenantSession, SqlError> {
        let names = TenantNames::new(self.services.clone(), tenant.clone(), viewer.clone());
        names.refresh().await?;
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(CATALOG, PUBLIC);
        config.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(self.runtime.clone())
            .with_default_features()
            .build();
        let context = SessionContext::new_with_state(state);
        context.register_catalog(CATALOG, catalog(&names)?);
        context.register_udtf(HybridSearch::NAME, HybridSearch::new(names.clone()));
        Ok(TenantSession { context, names })
    }

    /// What a query that begins now may use; `timeout` can only make it less.
    pub(crate) fn budget(&self, timeout: Option<Duration>, cancel: CancellationToken) -> Budget {
        let timeout = timeout.map_or(self.limits.timeout, |asked| asked.min(self.limits.timeout));
        Budget {
            deadline: Instant::now() + timeout,
            timeout,
            cancel,
        }
    }
}

/// A session with its names.
pub(crate) struct TenantSession {
    pub(crate) context: SessionContext,
    pub(crate) names: Arc<TenantNames>,
}

impl TenantSession {
    /// Plans a statement, if it only reads.
    pub(crate) async fn plan(&self, statement: Statement) -> Result<LogicalPlan, SqlError> {
        check_reads(&statement)?;
        let shown = first_words(&statement.to_string());
        let plan = self.context.state().statement_to_plan(statement).await?;
        // What the words do not show, as in `WITH x AS (...) INSERT ...` or `EXPLAIN ANALYZE DELETE ...`.
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|_| SqlError::ReadOnly(shown))?;
        Ok(plan)
    }

    /// Starts a plan that [`TenantSession::plan`] made.
    pub(crate) async fn run(
        &self,
        plan: LogicalPlan,
        budget: &Budget,
    ) -> Result<SendableRecordBatchStream, SqlError> {
        let rows = self.context.execute_logical_plan(plan).await?;
        Ok(budget.clone().bound(rows.execute_stream().await?))
    }
}

/// How long a query may go on.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    deadline: Instant,
    timeout: Duration,
    cancel: CancellationToken,
}

impl Budget {
    /// The outcome of `work`, or why it was ended.
    pub(crate) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, SqlError>>,
    ) -> Result<T, SqlError> {
        tokio::select! {
            done = tokio::time::timeout_at(self.deadline, work) => match done {
                Ok(done) => done,
                Err(_) => Err(SqlError::Timeout { after: self.timeout }),
            },
            () = self.cancel.cancelled() => Err(SqlError::Cancelled),
        }
    }

    /// The same rows, until the budget is used up: then an error, and the query is dropped.
    fn bound(self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let schema = rows.schema();
        let rows = futures::stream::unfold(Some((rows, self)), |state| async {
            let (mut rows, budget) = state?;
            let next = budget
                .within(async { Ok(rows.next().await.transpose()?) })
                .await;
            match next {
                Ok(Some(batch)) => Some((Ok(batch), Some((rows, budget)))),
                Ok(None) => None,
                Err(error) => Some((Err(DataFusionError::from(error)), None)),
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

/// Refuses a statement that would do more than read.
pub(crate) fn check_reads(statement: &Statement) -> Result<(), SqlError> {
    let reads = match statement {
        Statement::Statement(statement) => reads(statement),
        Statement::Explain(explain) => return check_reads(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    };
    if reads {
        Ok(())
    } else {
        Err(SqlError::ReadOnly(first_words(&statement.to_string())))
    }
}

fn reads(statement: &ast::Statement) -> bool {
    use ast::Statement::*;
    match statement {
        Explain { statement, .. } => reads(statement),
        Query(_) | ExplainTable { .. } => true,
        ShowTables { .. }
        | ShowColumns { .. }
        | ShowVariable { .. }
        | ShowVariables { .. }
        | ShowFunctions { .. }
        | ShowSchemas { .. }
        | ShowDatabases { .. }
        | ShowCreate { .. } => true,
        _ => false,
    }
}

/// Enough of a statement to recognise it in a message.
pub(crate) fn first_words(statement: &str) -> String {
    let words: Vec<&str> = statement.split_whitespace().take(3).collect();
    words.join(" ")
}

/// No file system and no object store: a statement that slipped through every check still could not open a file.
#[derive(Debug)]
struct NoStores;

impl object_store::ObjectStoreRegistry for NoStores {
    fn register_store(
        &self,
        _: &url::Url,
        _: Arc<dyn ::object_store::ObjectStore>,
    ) -> Option<Arc<dyn ::object_store::ObjectStore>> {
        None
    }

    fn get_store(
        &self,
        url: &url::Url,
    ) -> datafusion::error::Result<Arc<dyn ::object_store::ObjectStore>> {
        Err(SqlError::ReadOnly(url.to_string()).into())
    }
}
