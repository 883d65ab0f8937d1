-- The catalog, version 1, for PostgreSQL. Kept in step with ../sqlite; a test compares tables and columns.
-- Times are UTC milliseconds. Columns that are ordered or ranged over use the "C" collation, as SQLite does.

CREATE TABLE tenants (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- state: READY | DELETING. model NULL: keyword search only. chunking: JSON options of the chunk operator.
CREATE TABLE collections (
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,
    model TEXT,
    dims BIGINT,
    chunking TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

-- One row a URI. latest_version: the newest one begun; current_version: the newest one READY, which search shows.
-- A removed document stays as a row, so that version numbers never repeat. name_folded: lower case, for search by name.
CREATE TABLE documents (
    tenant_id TEXT COLLATE "C" NOT NULL,
    collection TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    uri TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    name_folded TEXT NOT NULL,
    latest_version BIGINT NOT NULL,
    current_version BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, collection, id),
    FOREIGN KEY (tenant_id, collection) REFERENCES collections (tenant_id, name)
);

CREATE UNIQUE INDEX documents_by_uri ON documents (tenant_id, collection, uri);

-- state: see DocumentState. metadata: a JSON object of strings.
CREATE TABLE document_versions (
    tenant_id TEXT COLLATE "C" NOT NULL,
    collection TEXT COLLATE "C" NOT NULL,
    document_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    state TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    content_type TEXT,
    size BIGINT NOT NULL,
    metadata TEXT NOT NULL,
    title TEXT,
    chunks BIGINT NOT NULL,
    error TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, collection, document_id, version),
    FOREIGN KEY (tenant_id, collection, document_id) REFERENCES documents (tenant_id, collection, id)
);

-- wire_format: json | arrow_ipc. arrow_schema: JSON, see TopicSchema; NULL accepts any batch.
CREATE TABLE topics (
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name TEXT COLLATE "C" NOT NULL,
    partitions BIGINT NOT NULL,
    retention_ms BIGINT,
    retention_bytes BIGINT,
    wire_format TEXT NOT NULL,
    arrow_schema TEXT,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

-- desired_state: running | paused | stopped. version: the newest row of pipeline_versions.
CREATE TABLE pipelines (
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    source_file TEXT,
    desired_state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE pipeline_versions (
    tenant_id TEXT COLLATE "C" NOT NULL,
    pipeline TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    definition TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, pipeline, version),
    FOREIGN KEY (tenant_id, pipeline) REFERENCES pipelines (tenant_id, name)
);

-- reference: a name of the lock file or the path of a directory.
CREATE TABLE models (
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name TEXT COLLATE "C" NOT NULL,
    reference TEXT NOT NULL,
    dims BIGINT,
    fingerprint TEXT,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    PRIMARY KEY (tenant_id, name)
);

-- key_hash: SHA-256 of the key in hexadecimal digits; the key itself is not stored. scopes: a JSON list.
-- purpose: user | admin_file (the key in the data directory's admin.key).
CREATE TABLE api_keys (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name TEXT NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    purpose TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE settings (
    tenant_id TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    setting TEXT COLLATE "C" NOT NULL,
    value TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, setting)
);
