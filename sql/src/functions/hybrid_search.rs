//! `hybrid_search(collection, query [, k])`: a search as a table, best hit first.
//!
//! Arguments are constants, or parameters of a prepared statement (`$1`), which DataFusion does not bind inside table
//! functions: [`parameter_types`] and [`bind_parameters`] do. The search runs when the query runs, so EXPLAIN
//! does not search.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue, plan_datafusion_err, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use va_catalog::event::string_list;

use crate::error::{suggestion, unreadable};
use crate::services::SearchRow;
use crate::tables::{part, project, projected, stream_plan};
use crate::tenant::TenantNames;

const USAGE: &str = "use hybrid_search('collection', 'query', k)";
const K_DEFAULT: i64 = 5;
const K_MAX: i64 = 1000;

/// The function, for one tenant.
#[derive(Debug)]
pub(crate) struct HybridSearch {
    names: Arc<TenantNames>,
}

impl HybridSearch {
    pub(crate) const NAME: &'static str = "hybrid_search";

    pub(crate) fn new(names: Arc<TenantNames>) -> Arc<Self> {
        Arc::new(Self { names })
    }
}

impl TableFunctionImpl for HybridSearch {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let (collection, query, k) = match args.exprs() {
            [collection, query] => (collection, query, None),
            [collection, query, k] => (collection, query, Some(k)),
            other => {
                return plan_err!(
                    "hybrid_search takes 2 or 3 arguments, got {}; {USAGE}",
                    other.len()
                );
            }
        };
        let k = match k {
            Some(k) => Argument::new(&K, k)?,
            None => Argument::Given(ScalarValue::Int64(Some(K_DEFAULT))),
        };
        Ok(Arc::new(HybridSearchTable {
            names: self.names.clone(),
            schema: schema(),
            collection: Argument::new(&COLLECTION, collection)?,
            query: Argument::new(&QUERY, query)?,
            k,
        }))
    }
}

/// How a parameter of the function is called, and of which type it is.
struct Declared {
    name: &'static str,
    data_type: DataType,
}

const COLLECTION: Declared = Declared {
    name: "collection",
    data_type: DataType::Utf8,
};
const QUERY: Declared = Declared {
    name: "query",
    data_type: DataType::Utf8,
};
const K: Declared = Declared {
    name: "k",
    data_type: DataType::Int64,
};

#[derive(Debug, Clone)]
enum Argument {
    /// Of the declared type, not null.
    Given(ScalarValue),
    /// `$1` and so on, given when the statement is executed.
    Parameter(String),
}

impl Argument {
    fn new(declared: &Declared, expr: &Expr) -> Result<Self> {
        match expr {
            Expr::Placeholder(placeholder) => Ok(Self::Parameter(placeholder.id.clone())),
            Expr::Literal(value, _) => Self::given(declared, value),
            Expr::Alias(alias) => Self::new(declared, &alias.expr),
            other => plan_err!(
                "`{}` of hybrid_search must be a constant, got `{other}`; {USAGE}",
                declared.name
            ),
        }
    }

    fn given(declared: &Declared, value: &ScalarValue) -> Result<Self> {
        let wrong = || {
            plan_datafusion_err!(
                "`{}` of hybrid_search is {}, got `{value}`; {USAGE}",
                declared.name,
                if declared.data_type == DataType::Utf8 {
                    "text"
                } else {
                    "a whole number"
                }
            )
        };
        // A number is not taken for text: `hybrid_search('help', 5)` is a slip.
        let fits = match declared.data_type {
            DataType::Utf8 => value.try_as_str().is_some(),
            _ => value.data_type().is_integer(),
        };
        if value.is_null() || !fits {
            return Err(wrong());
        }
        let value = value.cast_to(&declared.data_type).map_err(|_| wrong())?;
        Ok(Self::Given(value))
    }

    fn bound(&self, declared: &Declared, parameters: &ParamValues) -> Result<Self> {
        match self {
            Self::Given(_) => Ok(self.clone()),
            Self::Parameter(id) => {
                let given = parameters.get_placeholders_with_values(id)?;
                Self::given(declared, &given.value)
            }
        }
    }

    fn value(&self) -> Result<&ScalarValue> {
        match self {
            Self::Given(value) => Ok(value),
            Self::Parameter(id) => plan_err!("parameter `{id}` of hybrid_search has no value"),
        }
    }

    fn text(&self) -> Result<&str> {
        Ok(self.value()?.try_as_str().flatten().unwrap_or_default())
    }
}

#[derive(Debug, Clone)]
struct HybridSearchTable {
    names: Arc<TenantNames>,
    schema: SchemaRef,
    collection: Argument,
    query: Argument,
    k: Argument,
}

impl HybridSearchTable {
    fn arguments(&self) -> [(&Argument, Declared); 3] {
        [
            (&self.collection, COLLECTION),
            (&self.query, QUERY),
            (&self.k, K),
        ]
    }

    fn bound(&self, parameters: &ParamValues) -> Result<Self> {
        Ok(Self {
            names: self.names.clone(),
            schema: self.schema.clone(),
            collection: self.collection.bound(&COLLECTION, parameters)?,
            query: self.query.bound(&QUERY, parameters)?,
            k: self.k.bound(&K, parameters)?,
        })
    }
}

#[async_trait]
impl TableProvider for HybridSearchTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let name = self.collection.text()?;
        let Some(collection) = self.names.collection(name).await? else {
            return plan_err!(
                "collection `{name}` does not exist{}",
                suggestion(name, &self.names.collections())
            );
        };
        let query = self.query.text()?.to_owned();
        let k = match self.k.value()? {
            ScalarValue::Int64(Some(k @ 1..=K_MAX)) => usize::try_from(*k).unwrap_or_default(),
            other => return plan_err!("k of hybrid_search is `{other}`; use 1 to {K_MAX}"),
        };
        let all = self.schema.clone();
        let schema = projected(&all, projection)?;
        let (services, viewer) = (self.names.services.clone(), self.names.viewer.clone());
        let tenant = self.names.tenant.clone();
        let columns = schema.clone();
        let hits = part(move || {
            let (services, collection) = (services.clone(), collection.clone());
            let (tenant, viewer) = (tenant.clone(), viewer.clone());
            let (query, all, columns) = (query.clone(), all.clone(), columns.clone());
            futures::stream::once(async move {
                let hits = services
                    .search
                    .hybrid(&tenant, &viewer, &collection.collection, &query, k)
                    .await
                    .map_err(unreadable)?;
                project(&rows(&all, &hits)?, &columns)
            })
            .boxed()
        });
        stream_plan(schema, vec![hits], limit)
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("rank", DataType::UInt32, false),
        Field::new("score", DataType::Float64, false),
        Field::new("document_id", DataType::Utf8, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("uri", DataType::Utf8, false),
        Field::new("title", DataType::Utf8, true),
        Field::new("version", DataType::UInt32, false),
        Field::new("chunk_id", DataType::Utf8, false),
        Field::new("title_path", string_list(), false),
        Field::new("page", DataType::UInt32, true),
        Field::new("start", DataType::UInt64, false),
        Field::new("end", DataType::UInt64, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("vector_rank", DataType::UInt32, true),
        Field::new("keyword_rank", DataType::UInt32, true),
    ]))
}

fn rows(schema: &SchemaRef, hits: &[SearchRow]) -> Result<RecordBatch> {
    let text = |of: fn(&SearchRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(hits.iter().map(of)))
    };
    let u32s = |of: fn(&SearchRow) -> Option<u32>| -> ArrayRef {
        Arc::new(UInt32Array::from_iter(hits.iter().map(of)))
    };
    let u64s = |of: fn(&SearchRow) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(hits.iter().map(of)))
    };
    let item = Field::new("item", DataType::Utf8, false);
    let mut title_paths = ListBuilder::new(StringBuilder::new()).with_field(item);
    for hit in hits {
        title_paths.append_value(hit.title_path.iter().map(Some));
    }
    let titles = hits.iter().map(|hit| hit.title.as_deref());
    Ok(RecordBatch::try_new(
        schema.clone(),
        vec![
            u32s(|hit| Some(hit.rank)),
            Arc::new(Float64Array::from_iter_values(
                hits.iter().map(|hit| hit.score),
            )),
            text(|hit| &hit.document_id),
            text(|hit| &hit.name),
            text(|hit| &hit.uri),
            Arc::new(StringArray::from_iter(titles)),
            u32s(|hit| Some(hit.version)),
            text(|hit| &hit.chunk_id),
            Arc::new(title_paths.finish()),
            u32s(|hit| hit.page),
            u64s(|hit| hit.start),
            u64s(|hit| hit.end),
            text(|hit| &hit.text),
            u32s(|hit| hit.vector_rank),
            u32s(|hit| hit.keyword_rank),
        ],
    )?)
}

/// The parameters that the plan's calls of the function have, with their types.
pub(crate) fn parameter_types(plan: &LogicalPlan) -> Result<HashMap<String, DataType>> {
    let mut types = HashMap::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
            && let Some(table) = provider.downcast_ref::<HybridSearchTable>()
        {
            for (argument, declared) in table.arguments() {
                if let Argument::Parameter(id) = argument {
                    types.insert(id.clone(), declared.data_type);
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(types)
}

/// The plan with the parameters of its calls of the function given.
pub(crate) fn bind_parameters(plan: LogicalPlan, values: &ParamValues) -> Result<LogicalPlan> {
    let bound = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(mut scan) = node else {
            return Ok(Transformed::no(node));
        };
        let Ok(provider) = source_as_provider(&scan.source) else {
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        };
        match provider.downcast_ref::<HybridSearchTable>() {
            Some(table) => {
                scan.source = provider_as_source(Arc::new(table.bound(values)?));
                Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
            }
            None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
        }
    })?;
    Ok(bound.data)
}
