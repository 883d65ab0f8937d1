//! Pipeline definitions, every version of them, and whether each should be running.
//!
//! A definition is kept as the text it was written as; what it means is decided by the pipeline crate.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::database::{Catalog, Part};
use super::documents::read_number;
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, query};
use crate::ids::{PipelineName, TenantId, Version};

/// What a pipeline should be doing; what it does is known by the runtime only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredState {
    Running,
    /// Keeps its place and its resources.
    Paused,
    Stopped,
}

impl DesiredState {
    pub const ALL: [Self; 3] = [Self::Running, Self::Paused, Self::Stopped];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for DesiredState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A pipeline with its newest definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    pub name: PipelineName,
    /// Counted from 1; a changed definition is the next one.
    pub version: Version,
    /// YAML, as written.
    pub definition: String,
    /// The file it was read from.
    pub source_file: Option<String>,
    pub desired_state: DesiredState,
    /// UTC milliseconds.
    pub created_at: i64,
    pub updated_at: i64,
}

/// One version of a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineVersion {
    pub version: Version,
    pub definition: String,
    /// UTC milliseconds.
    pub created_at: i64,
}

const PIPELINE: &str = "SELECT p.name, p.version, v.definition, p.source_file, p.desired_state, p.created_at, \
    p.updated_at FROM pipelines p JOIN pipeline_versions v ON v.tenant_id = p.tenant_id AND v.pipeline = p.name \
    AND v.version = p.version";

impl Catalog {
    /// Stores a definition and returns its version: a new one only when the text differs from the newest. A new
    /// pipeline should be running; an old one keeps its desired state.
    pub async fn put_pipeline(
        &self,
        tenant: &TenantId,
        name: &PipelineName,
        definition: &str,
        source_file: Option<&str>,
    ) -> Result<Version, CatalogError> {
        self.tenant(tenant).await?;
        let now = self.now_ms();
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let newest = query(&format!(
            "{PIPELINE} WHERE p.tenant_id = $1 AND p.name = $2"
        ))
        .bind(tenant.as_str())
        .bind(name.as_str())
        .fetch_optional(&mut transaction)
        .await?
        .map(|row| read_pipeline(&row))
        .transpose()?;
        let version = match &newest {
            Some(newest) if newest.definition == definition => newest.version,
            Some(newest) => Version(newest.version.0 + 1),
            None => Version(1),
        };
        query(
            "INSERT INTO pipelines (tenant_id, name, version, source_file, desired_state, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, 'running', $5, $5) ON CONFLICT (tenant_id, name) DO UPDATE SET \
             version = excluded.version, source_file = excluded.source_file, updated_at = excluded.updated_at",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .bind(i64::from(version.0))
        .bind(source_file)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        query(
            "INSERT INTO pipeline_versions (tenant_id, pipeline, version, definition, created_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, pipeline, version) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .bind(i64::from(version.0))
        .bind(definition)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(version)
    }

    /// The pipeline of that name.
    pub async fn pipeline(
        &self,
        tenant: &TenantId,
        name: &PipelineName,
    ) -> Result<Pipeline, CatalogError> {
        let row = query(&format!(
            "{PIPELINE} WHERE p.tenant_id = $1 AND p.name = $2"
        ))
        .bind(tenant.as_str())
        .bind(name.as_str())
        .fetch_optional(self.read_of(tenant))
        .await?;
        row.map(|row| read_pipeline(&row))
            .transpose()?
            .ok_or_else(|| CatalogError::not_found("pipeline", name))
    }

    /// The tenant's pipelines, by name.
    pub async fn pipelines(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<Pipeline>, CatalogError> {
        let rows = query(&format!(
            "{PIPELINE} WHERE p.tenant_id = $1 AND p.name > $2 ORDER BY p.name LIMIT $3"
        ))
        .bind(tenant.as_str())
        .bind(page.after()?)
        .bind(page.rows()?)
        .fetch_all(self.read_of(tenant))
        .await?;
        let pipelines = rows.iter().map(read_pipeline).collect::<Result<_, _>>()?;
        Ok(page.listing(pipelines, |pipeline: &Pipeline| pipeline.name.as_str()))
    }

    /// The versions of a pipeline's definition, newest first.
    pub async fn pipeline_versions(
        &self,
        tenant: &TenantId,
        name: &PipelineName,
    ) -> Result<Vec<PipelineVersion>, CatalogError> {
        let rows = query(
            "SELECT version, definition, created_at FROM pipeline_versions \
             WHERE tenant_id = $1 AND pipeline = $2 ORDER BY version DESC",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .fetch_all(self.read_of(tenant))
        .await?;
        if rows.is_empty() {
            return Err(CatalogError::not_found("pipeline", name));
        }
        rows.iter()
            .map(|row| {
                Ok(PipelineVersion {
                    version: Version(read_number(row, "version")?),
                    definition: row.try_get("definition")?,
                    created_at: row.try_get("created_at")?,
                })
            })
            .collect()
    }

    /// Says what the pipeline should be doing.
    pub async fn set_desired_state(
        &self,
        tenant: &TenantId,
        name: &PipelineName,
        desired_state: DesiredState,
    ) -> Result<(), CatalogError> {
        let updated = query(
            "UPDATE pipelines SET desired_state = $3, updated_at = $4 WHERE tenant_id = $1 AND name = $2",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .bind(desired_state.as_str())
        .bind(self.now_ms())
        .execute(self.write_of(tenant))
        .await?;
        if updated == 0 {
            return Err(CatalogError::not_found("pipeline", name));
        }
        Ok(())
    }

    /// Forgets a pipeline with all its versions.
    pub async fn delete_pipeline(
        &self,
        tenant: &TenantId,
        name: &PipelineName,
    ) -> Result<(), CatalogError> {
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        query("DELETE FROM pipeline_versions WHERE tenant_id = $1 AND pipeline = $2")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .execute(&mut transaction)
            .await?;
        let deleted = query("DELETE FROM pipelines WHERE tenant_id = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .execute(&mut transaction)
            .await?;
        transaction.commit().await?;
        if deleted == 0 {
            return Err(CatalogError::not_found("pipeline", name));
        }
        Ok(())
    }
}

fn read_pipeline(row: &Row) -> Result<Pipeline, CatalogError> {
    let desired_state: String = row.try_get("desired_state")?;
    Ok(Pipeline {
        name: PipelineName::new(row.try_get::<String>("name")?)?,
        version: Version(read_number(row, "version")?),
        definition: row.try_get("definition")?,
        source_file: row.try_get("source_file")?,
        desired_state: DesiredState::ALL
            .into_iter()
            .find(|state| state.as_str() == desired_state)
            .ok_or_else(|| CatalogError::corrupt("desired_state", &desired_state))?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
