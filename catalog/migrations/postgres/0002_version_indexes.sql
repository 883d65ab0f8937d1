-- The catalog, version 2, for PostgreSQL: finding the versions that refer to an object, and those that are under way.

CREATE INDEX document_versions_by_hash ON document_versions (content_hash);
CREATE INDEX document_versions_pending ON document_versions (created_at) WHERE state IN ('UPLOADING', 'PROCESSING', 'DELETING');
