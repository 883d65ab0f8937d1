-- The catalog, version 3, for SQLite: which splits make up the shared index of a collection, and which documents of each
-- are replaced or removed. See src/store/splits.rs.

-- seq: the newest state of the collection's index; it only grows, also when the collection is dropped and made again.
-- merging_until: until when a process has the merge of this collection to itself.
CREATE TABLE split_states (
    tenant_id TEXT NOT NULL,
    collection TEXT NOT NULL,
    seq BIGINT NOT NULL,
    merging_until BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, collection)
);

-- A split is known by the seq that it came with. It is part of every state from created_seq on, and before removed_seq.
-- dims NULL: it has no vectors. removed_at: when it was removed.
CREATE TABLE splits (
    tenant_id TEXT NOT NULL,
    collection TEXT NOT NULL,
    created_seq BIGINT NOT NULL,
    object_hash TEXT NOT NULL,
    chunk_rows BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    dims BIGINT,
    removed_seq BIGINT,
    created_at BIGINT NOT NULL,
    removed_at BIGINT,
    PRIMARY KEY (tenant_id, collection, created_seq)
);

CREATE UNIQUE INDEX splits_by_hash ON splits (object_hash, tenant_id, collection);
CREATE INDEX splits_removed ON splits (removed_at) WHERE removed_at IS NOT NULL;

-- Which split has the chunks of a document; split NULL: none. version and removed (0 or 1): the newest that was published.
CREATE TABLE split_documents (
    tenant_id TEXT NOT NULL,
    collection TEXT NOT NULL,
    document_id TEXT NOT NULL,
    split BIGINT,
    version BIGINT NOT NULL,
    removed BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, collection, document_id)
);

CREATE INDEX split_documents_by_split ON split_documents (tenant_id, collection, split);

-- A document whose chunks in that split are not part of the states from seq on.
CREATE TABLE split_dead (
    tenant_id TEXT NOT NULL,
    collection TEXT NOT NULL,
    split BIGINT NOT NULL,
    document_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, collection, split, document_id)
);

CREATE INDEX split_dead_by_seq ON split_dead (tenant_id, collection, seq);
