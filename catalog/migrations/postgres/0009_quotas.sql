-- Who may read a document, and how much a tenant may have. Times are UTC milliseconds.

-- The readers of a document as lines, with a line break before and after each (`user:ID`, `role:NAME`); empty: everybody in
-- the tenant who may read documents.
ALTER TABLE documents ADD COLUMN readers TEXT COLLATE "C" NOT NULL DEFAULT '';
-- 1: a document of the collection has or had readers, so searches must look at who asks. It never becomes 0 again: what
-- the indexes hold is older than what stands here.
ALTER TABLE collections ADD COLUMN restricted BIGINT NOT NULL DEFAULT 0;

CREATE INDEX documents_with_readers ON documents (tenant_id) WHERE readers <> '';

-- The most that a tenant may have of each; NULL: no limit, as without a row. Who adds something locks the row first.
CREATE TABLE tenant_quotas (
    tenant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES tenants (name),
    documents_max BIGINT,
    storage_bytes_max BIGINT,
    collections_max BIGINT,
    users_max BIGINT,
    keys_max BIGINT,
    conversations_max BIGINT,
    updated_at BIGINT NOT NULL
);

-- As in 0008.
ALTER TABLE tenant_quotas ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_quotas FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON tenant_quotas
    USING (tenant_id = current_setting('va.tenant', true) OR current_setting('va.tenant', true) = '*');
